"""The same weights in transformers and torch, fp32 on CPU: what our graphs and our picture and prompt code must equal.

The only modules that import torch or transformers, and only inside functions. Nothing here uses our runtime: pictures
go through Hugging Face's PIL processors, prompts through its tokenizers and chat templates.
"""
