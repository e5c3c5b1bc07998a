"""`finemoe serve`: an endpoint for OpenAI clients over the server of Transformers."""
