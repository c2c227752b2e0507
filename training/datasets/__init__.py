"""One file per source of data. A dataset has len, [i] -> Sample, `shape` [C,*S] of its images, and `data`.

`data` is a plain dict of what travels with the images into snapshots and samples: source, content_hash, channels,
label_classes, class_names, intensity {lo, hi, clip, unit}, spatial_shape and affine of the volumes.
"""
