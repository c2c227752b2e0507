"""Networks of the EDM paper's code release as ours: their constructor's arguments and their weights by name."""

import re
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

from edm3d.networks.precond import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.utils.checks import check_count, listed

CLASSES: dict[str, Callable[..., nn.Module]] = {
    "networks.precond.EDMPrecond": EDMPrecond, "networks.precond.VPPrecond": VPPrecond,
    "networks.precond.VEPrecond": VEPrecond, "networks.precond.iDDPMPrecond": iDDPMPrecond,
    "networks.unet.ADMUNet": ADMUNet, "networks.unet.SongUNet": SongUNet,
}
# the release's preconditioners: usual model_type, and own parameters (the same as ours, with the same defaults)
PRECONDS: dict[str, tuple[str, set[str]]] = {
    "EDMPrecond": ("DhariwalUNet", {"sigma_min", "sigma_max", "sigma_data"}),
    "VPPrecond": ("SongUNet", {"beta_d", "beta_min", "M", "epsilon_t"}),
    "VEPrecond": ("SongUNet", {"sigma_min", "sigma_max"}),
    "iDDPMPrecond": ("DhariwalUNet", {"C_1", "C_2", "M"}),
}
# the release's UNets: our class, defaults of its parameters, and what we call those that we call otherwise
UNETS: dict[str, tuple[str, dict]] = {
    "DhariwalUNet": ("networks.unet.ADMUNet", {
        "augment_dim": 0, "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3,
        "attn_resolutions": [32, 16, 8], "dropout": 0.1, "label_dropout": 0.0}),
    "SongUNet": ("networks.unet.SongUNet", {
        "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4, "num_blocks": 4,
        "attn_resolutions": [16], "dropout": 0.1, "label_dropout": 0.0, "embedding_type": "positional",
        "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1]}),
}
CHANNELS_PER_HEAD = {"DhariwalUNet": 64, "SongUNet": 0}  # narrower levels have no attention there, listed or not
OUR_NAMES = {"embedding_type": "embedding", "encoder_type": "encoder", "decoder_type": "decoder"}
COMMON = {"img_resolution", "img_channels", "label_dim", "use_fp16", "model_type"}


def build_from_edm(config: dict, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """A network of the release, in eval mode; config {"class_name", "kwargs"}, state_dict by the release's names.

    ValueError names an unknown class, model_type or argument, and weights that are missing, left over or misshapen.
    """
    weights = edm_weights(config, state_dict)
    net = build(edm_network_node(config))
    net.load_state_dict(weights)
    return net.eval()


def build(node: dict) -> nn.Module:
    """The module of a network node of this file's making."""
    arguments = {k: build(v) if isinstance(v, dict) else v for k, v in node.items() if k != "_target_"}
    return CLASSES[node["_target_"]](**arguments)


def edm_network_node(config: dict) -> dict:
    """Our configuration (`_target_` and arguments) of a network of the release, for 2 spatial dimensions.

    use_fp16 is accepted and ignored: precision is chosen where the network runs.
    """
    missing = {"class_name", "kwargs"} - set(config)
    if missing:
        raise ValueError(f"config: no {listed(sorted(missing))}; wanted class_name and kwargs")
    name, kwargs = config["class_name"], config["kwargs"]
    model_type, own = known("class_name", name, PRECONDS)
    model_type = kwargs.get("model_type", model_type)
    target, defaults = known("model_type", model_type, UNETS)
    unknown = set(kwargs) - COMMON - own - set(defaults)
    if unknown:
        raise ValueError(f"{name} of a {model_type}: no such arguments: {listed(sorted(unknown))}")
    check_kinds(kwargs, defaults)
    model = {**defaults, **{k: v for k, v in kwargs.items() if k in defaults}}
    label_dim, label_dropout = kwargs.get("label_dim", 0), model.pop("label_dropout")
    sizes, attends = level_sizes(config), model.pop("attn_resolutions")
    widths, narrowest = [model["model_channels"] * m for m in model["channel_mult"]], CHANNELS_PER_HEAD[model_type]
    levels = [i for i, (size, width) in enumerate(zip(sizes, widths)) if size in attends and width >= narrowest]
    channels = kwargs["img_channels"]
    return {
        "_target_": f"networks.precond.{name}",
        **{k: v for k, v in kwargs.items() if k in own},
        "label_dropout": label_dropout if label_dim else 0,
        "model": {"_target_": target, "in_channels": channels,
                  "out_channels": channels * (2 if name == "iDDPMPrecond" else 1), "spatial_dims": 2,
                  "label_dim": label_dim, "attention_levels": levels,
                  **{OUR_NAMES.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in model.items()}},
    }


def edm_weights(config: dict, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a network of the release by our names, in our dtypes; constant filters are left out.

    ValueError names weights that are missing, left over or of another shape than the configuration says.
    """
    with torch.device("meta"):
        own = build(edm_network_node(config)).state_dict()
    sizes = level_sizes(config)
    names = {our_name(k, sizes): k for k in state_dict if not k.endswith(".resample_filter")}
    missing = [release_name(k, sizes) for k in own.keys() - names.keys()]
    left_over = [names[k] for k in names.keys() - own.keys()]
    misshapen = [f"{names[k]} {list(state_dict[names[k]].shape)} wanted {list(own[k].shape)}" for k in names
                 if k in own and state_dict[names[k]].shape != own[k].shape]
    for what, keys in (("missing", missing), ("left over", left_over), ("of another shape", misshapen)):
        if keys:
            raise ValueError(f"weights of the {config['class_name']} do not fit its configuration; {what}: "
                             f"{listed(sorted(keys))}")
    return {k: state_dict[names[k]].detach().to(own[k].dtype) for k in own}


def inflate_weights(node: dict, weights: dict[str, torch.Tensor], mode: str = "centre"
                    ) -> tuple[dict, dict[str, torch.Tensor]]:
    """A 2D network's configuration and weights as those of a 3D one, the new axis first (Carreira and Zisserman 2017).

    A kernel k x l becomes k x k x l: the old one in the middle of zeros ('centre') or spread evenly ('mean'). Of a
    volume that is constant along the new axis, 'centre' gives the 2D result in every slice (with filters other than the
    box, where the stride along that axis is 1), 'mean' comes near it in long volumes. Strides per axis repeat their
    first number; they may be changed freely, no weight depends on them.
    """
    known("mode", mode, {"centre": (), "mean": ()})
    model = node.get("model", node)
    if model.get("spatial_dims") != 2:
        raise ValueError(f"inflate: wanted a network with spatial_dims=2, got spatial_dims={model.get('spatial_dims')}")
    per_axis = {key: with_first_axis(model[key]) for key in ("strides", "kernel_size") if key in model}
    if isinstance(model.get("image_size"), list):
        per_axis["image_size"] = [model["image_size"][0], *model["image_size"]]
    model = deepcopy({**model, **per_axis, "spatial_dims": 3})
    return ({**deepcopy(node), "model": model} if "model" in node else model,
            {k: inflate_kernel(v, mode) if v.ndim == 4 else v.clone() for k, v in weights.items()})


def with_first_axis(value: int | list) -> int | list:
    """Numbers per level (and axis) of a 2D network with the first axis twice."""
    return value if isinstance(value, int) else [v if isinstance(v, int) else [v[0], *v] for v in value]


def inflate_kernel(kernel: torch.Tensor, mode: str) -> torch.Tensor:
    """Weight [O,I,k,l] as [O,I,k,k,l]."""
    length = kernel.shape[2]
    share = torch.full((length,), 1 / length) if mode == "mean" else torch.eye(length)[length // 2]
    return kernel.unsqueeze(2) * share.to(kernel).reshape(-1, 1, 1)


def our_name(key: str, sizes: list[int]) -> str:
    """model.enc.32x32_block0.* -> model.enc.level0_block0.*, sizes being those of the levels."""
    found = re.match(r"(model\.(?:enc|dec)\.)(\d+)x\2(_.*)", key)
    if not found or int(found[2]) not in sizes:
        return key
    return f"{found[1]}level{sizes.index(int(found[2]))}{found[3]}"


def release_name(key: str, sizes: list[int]) -> str:
    """The inverse of `our_name`."""
    found = re.match(r"(model\.(?:enc|dec)\.)level(\d+)(_.*)", key)
    if not found:
        return key
    size = sizes[int(found[2])]
    return f"{found[1]}{size}x{size}{found[3]}"


def level_sizes(config: dict) -> list[int]:
    """Image size at every level, which the release has in its names."""
    kwargs = config["kwargs"]
    default = UNETS[kwargs.get("model_type", PRECONDS[config["class_name"]][0])][1]["channel_mult"]
    return [kwargs["img_resolution"] >> level for level in range(len(kwargs.get("channel_mult", default)))]


def check_kinds(kwargs: dict, defaults: dict) -> None:
    """ValueError when an argument is missing, or is no whole number, number, text or list of these as it should be."""
    missing = {"img_resolution", "img_channels"} - set(kwargs)
    if missing:
        raise ValueError(f"arguments missing: {listed(sorted(missing))}")
    examples = {**dict.fromkeys(COMMON, 1), "model_type": "SongUNet", **defaults}
    for key, value in kwargs.items():
        example = examples.get(key, 0.5)  # the preconditioners' own
        if not same_kind(value, example):
            raise ValueError(f"{key}={value!r}: wanted something of the kind of {example!r}")
    check_count(1, {key: kwargs[key] for key in ("img_resolution", "img_channels")})


def same_kind(value: object, example: object) -> bool:
    """Whether both are whole numbers (or switches), numbers, texts or lists of these."""
    if isinstance(example, list):
        return isinstance(value, list | tuple) and all(same_kind(v, example[0]) for v in value)
    return isinstance(value, int | float if isinstance(example, float) else type(example))


def known(key: str, name: str, table: dict[str, tuple]) -> tuple:
    """Entry of a table, or a ValueError with its names."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{key}={name!r}: wanted one of {', '.join(table)}")
    return table[name]
