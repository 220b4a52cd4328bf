"""HunyuanVideo-1.5: videos from text or a picture (hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-*)."""
