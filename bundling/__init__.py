"""From checkpoints to a finished bundle: plan, sizes, build, staging, quantising, tuning; and its checks."""
