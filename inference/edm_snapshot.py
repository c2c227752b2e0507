"""From an official EDM pickle to a snapshot of ours, of the same network or of one inflated to three dimensions."""

from pathlib import Path
from typing import NamedTuple

import torch

from edm3d.formats.edm_pickle import read_edm_pickle
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.png import COLOURS
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.networks.edm_import import edm_network_node, edm_weights, inflate_weights
from edm3d.utils import locks
from edm3d.utils.config import all_arguments, build_from_file
from edm3d.utils.files import check_dest, check_replaced, file_hash, first_line

NOT_SET = ("model", "in_channels", "spatial_dims", "image_size")  # in overrides: the latter three are the data's


class Imported(NamedTuple):
    """What a snapshot was made of: the official class, our network node, its shape [C,*S], classes and weights."""

    class_name: str
    node: dict
    shape: tuple[int, ...]
    classes: int
    weights: int
    tensors: int
    written: bool  # False where the same snapshot was there already

    @property
    def model_name(self) -> str:
        """Class of the raw network."""
        return self.node["model"]["_target_"].rpartition(".")[2]

    def overrides(self) -> list[str]:
        """What makes the same network of an experiment for such data, whatever its YAML says."""
        precond, model = self.class_name.removesuffix("Precond").lower(), all_arguments(self.node["model"])
        network = "adm" if self.model_name == "ADMUNet" else "ncsnpp" if model["embedding"] == "fourier" else "ddpmpp"
        if model["out_channels"] == self.shape[0]:
            del model["out_channels"]
        settings = {**all_arguments(self.node), **{f"model.{key}": value for key, value in model.items()}}
        return [f"network={network}", f"precond={precond}", f"loss={precond}",
                *(f"++training.network.{key}={override_value(value)}" for key, value in settings.items()
                  if key.rpartition(".")[2] not in NOT_SET)]


def override_value(value: object) -> str:
    """A number, text, None or list of these as Hydra reads it."""
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def import_edm(source: Path, dest: Path, inflate_mode: str | None = None, overwrite: bool = False) -> Imported:
    """Write the network of an official pickle as a snapshot; inflate_mode (centre, mean) makes it 3D on the way.

    A snapshot that was made just so stays as it is. ValueError when the file is no such pickle, or its weights are not
    finite or not those of the network it names.
    """
    if dest.is_dir():
        raise ValueError(f"--dest {dest} is a folder; wanted the file to write, as in --dest {dest / 'snapshot.pt'}")
    check_dest(dest, ".pt", {"the pickle itself": source})
    official = read_edm_pickle(source)
    try:
        node = edm_network_node(official.config)
        check_weights(node["model"], official.state_dict)
        weights = edm_weights(official.config, official.state_dict)
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from e
    except TypeError as e:  # what a constructor makes of arguments of another kind
        raise ValueError(f"{source}: the network cannot be built of {official.config['kwargs']} ({e})") from e
    dims = 2
    if inflate_mode is not None:
        node, weights = inflate_weights(node, weights, inflate_mode)
        dims = 3
    shape = (node["model"]["in_channels"], *[official.config["kwargs"]["img_resolution"]] * dims)
    classes = check_network(node, weights, shape, source)
    snapshot = Snapshot("diffusion", node, describe_images(source, shape, classes), shape, weights=weights,
                        config={"imported": {**official.config, "inflate_mode": inflate_mode}})
    with locks.output(dest):
        written = overwrite or not is_there(dest, snapshot)
        if written:
            check_replaced(dest, overwrite, Snapshot.read)
            snapshot.save(dest)
    return Imported(official.config["class_name"], node, shape, classes, sum(w.numel() for w in weights.values()),
                    len(weights), written)


def is_there(dest: Path, snapshot: Snapshot) -> bool:
    """Whether a file holds this network, made of the same pickle in the same way."""
    try:
        old = Snapshot.read(dest)
    except ValueError:
        return False
    return (old.facts.content_hash, old.config, old.network_hash) == \
        (snapshot.facts.content_hash, snapshot.config, snapshot.network_hash)


def check_weights(model: dict, weights: dict[str, torch.Tensor]) -> None:
    """ValueError for weights that are not finite, or too few for the blocks that the node of a UNet would build."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    blocks, levels = model["num_blocks"], len(model["channel_mult"])
    if max(blocks, 1) * levels > len(weights):
        raise ValueError(f"num_blocks={blocks} on {levels} levels do not go with {len(weights)} tensors of weights")


@torch.no_grad()
def check_network(node: dict, weights: dict[str, torch.Tensor], shape: tuple[int, ...], source: Path) -> int:
    """Build the network, give it its weights and run it once, all shapes only (meta device); its number of classes."""
    with torch.device("meta"):
        net = build_from_file(node, str(source))
        x, sigma = torch.empty(1, *shape), torch.ones(1)
        classes = net.takes["class_labels"].width if net.takes else 0
        condition = Condition(class_labels=torch.empty(1, classes)) if classes else None
    try:
        net.load_state_dict(weights, assign=True)
        D_x = net.eval().to("meta")(x, sigma, condition)
    except RuntimeError as e:
        raise ValueError(f"{source}: the network does not run: {first_line(e)}") from e
    if D_x.shape != x.shape:
        raise ValueError(f"{source}: the network makes {list(D_x.shape)} of {list(x.shape)}")
    return classes


def describe_images(source: Path, shape: tuple[int, ...], classes: int) -> Facts:
    """What the images of an official network mean: bytes as [-1, 1], colours, classes by number, no geometry."""
    channels = COLOURS if shape[0] == 3 else tuple(f"channel {i}" for i in range(shape[0]))
    return Facts(f"imported from {source.name}", file_hash(source), channels, spatial_shape=shape[1:],
                 class_names=tuple(str(i) for i in range(classes)), intensity=Intensity(0.0, 255.0, True, "8 bit"))
