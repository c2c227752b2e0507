"""What is known of the volumes of a file, and travels with them."""

from dataclasses import asdict

from formats.volumes import VolumesFile


def volume_facts(file: VolumesFile, split: str) -> dict:
    """What travels with the images of a file: contract, names, geometry and origin, as plain data."""
    meta = file.meta
    return {"source": str(file.path), "content_hash": file.content_hash, "channels": list(meta.channels),
            "label_classes": list(meta.label_classes), "class_names": list(meta.class_names),
            "intensity": asdict(meta.intensity), "spatial_shape": list(file.spatial_shape(split)),
            "affine": file.read(split, 0).affine.tolist()}
