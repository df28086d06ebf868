"""Page to explore a tokenizer and its generator in a browser. Only `page.py` and the tabs need Gradio (extra `app`)."""
