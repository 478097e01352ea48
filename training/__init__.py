"""Data synthesis with the target, losses and the drafter trainer."""
