"""Reads images and labels, and turns them into batches.

sources, label_file, base64_*         what training reads: `ImageSource`, and the formats that implement it
united                                several data sets as one, with their classes numbered together
collection, image_folders, _lists     images that are embedded or tested on, in a fixed order: `Collection`
test_sets, pair_sets, verification    what a network is tested on: pairs, identities, a gallery and its probes
transforms, augmentation              decoding; random changes to training images
sampler, prefetch                     the order of an epoch; threads that work ahead
loader, readers, reader_batches       batches: from an `ImageSource`, and from the readers that users write
exclusion, damaged                    images that training leaves out, by a list or because they are damaged
glyphs                                a real data set that needs no download (`python -m plsc.data.glyphs`)

Only `readers` and `reader_batches` import Paddle.
"""
