"""LongCat-Image: pictures with text in them, in English and Chinese (meituan-longcat/LongCat-Image)."""
