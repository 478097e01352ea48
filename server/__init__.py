"""An HTTP server in the form of OpenAI's API, over the scheduler of a bundle (docs/serving.md)."""
