"""The training on glyphs that several benchmarks begin with."""


def glyph_entry(data, epochs, seed):
    """Returns an entry that trains GlyphNet on glyphs, and tests pairs of characters that it does not train on.

    Args:
        data: Folder of the set, with `glyphs.bin`.
        epochs: Number of epochs.
        seed: The seed.
    """
    from plsc import Entry

    ins = Entry()
    ins.set_dataset_dir(data)
    ins.set_class_num("auto")
    ins.set_image_shape((3, 32, 32))
    ins.set_model_name("GlyphNet")
    ins.set_emb_size(128)
    ins.set_loss_type("dist_cosface")
    ins.set_scale(32.0)
    ins.set_train_batch_size(128)
    ins.set_lr(0.8)
    ins.set_augmentation(mirror=False)
    ins.set_val_targets("glyphs")
    ins.set_train_epochs(epochs)
    ins.set_model_save_dir(None)
    ins.set_seed(seed)
    return ins
