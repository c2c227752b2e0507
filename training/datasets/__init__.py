"""One file per source of data. A dataset has len, [i] -> Sample, `shape` [C,*S] of its images, and `facts`.

`facts` (formats.facts.Facts) are what travels with the images into snapshots and samples. One may have `notes`, lines
for the log of a training.
"""
