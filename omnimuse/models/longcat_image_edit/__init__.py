"""LongCat-Image-Edit: a picture changed as a text says (meituan-longcat/LongCat-Image-Edit*)."""
