"""SAM's embeddings of target images on disk, so that the frozen SAM embeds each image only once.

`entries` has the files, `packing` their content; `cache` reads or computes embeddings, and `build`
fills a cache before training (`prosam cache build`).
"""
