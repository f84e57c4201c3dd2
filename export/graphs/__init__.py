"""ONNX graphs written node by node from an ArchSpec: vision_encoder, embed_tokens, decoder_model_merged."""
