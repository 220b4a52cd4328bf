"""Pictures of one U-Net over pixels, which reads no text."""
