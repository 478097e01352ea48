"""The draft/verify loop over engine sessions; never imports torch."""
