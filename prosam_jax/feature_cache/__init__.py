"""SAM's embeddings of target images on disk: SAM is frozen, so it need not see an image twice.

`entries` are the files, `packing` is what stands in them, `cache` reads or computes, `build` fills
a cache ahead of training, and `prosam cache build` is the command for that.
"""
