"""What a file may name without being trusted: exact classes and functions, one list for each place in a file.

None of them, nor what it builds, downloads, opens a path or runs text, but for data sets, which read the formats that
we parse; `tests/test_trust.py` walks the lists. Names are those by which a configuration of ours writes them: of a
library, the public one.
"""

from collections.abc import Mapping, Sequence


def _names(homes: Mapping[str, Sequence[str]]) -> frozenset[str]:
    return frozenset(f"{home}.{name}" for home, names in homes.items() for name in names)


NETWORKS = _names({
    "edm3d.networks.autoencoder": ("AutoencoderKL",),
    "edm3d.networks.gamma": ("AutoencoderGamma",),
    "edm3d.networks.monai_unet": ("MonaiUNet",),
    "edm3d.networks.precond": ("DDPMPrecond", "EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond"),
    "edm3d.networks.unet": ("ADMUNet", "SongUNet"),
    "edm3d.networks.vq": ("AutoencoderVQ",),
    "monai.networks.blocks": ("ADN", "Convolution", "ResidualUnit", "UnetBasicBlock", "UnetResBlock", "UnetUpBlock"),
    # never those that take `pretrained` or a path, as most that carry the name of a published size do
    "monai.networks.nets": ("AttentionUnet", "AutoEncoder", "AutoencoderKL", "BasicUNet", "DenseNet",
                            "DiffusionModelUNet", "DynUNet", "EfficientNet", "MultiScalePatchDiscriminator",
                            "PatchDiscriminator", "SegResNet", "UNet", "VNet"),
    "torch.nn": ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Dropout",
                 "GELU", "GroupNorm", "LayerNorm", "LeakyReLU", "Linear", "ReLU", "SiLU"),
})
DATASETS = _names({
    "edm3d.training.datasets.arrays": ("ArraysDataset",),
    "edm3d.training.datasets.brainweb": ("BrainwebSlices",),
    "edm3d.training.datasets.latents": ("LatentsDataset",),
    "edm3d.training.datasets.mixed": ("MixedDataset",),
    "edm3d.training.datasets.paired": ("PairedDataset",),
    "edm3d.training.datasets.phantoms": ("PhantomDataset",),
    "edm3d.training.datasets.samples": ("SamplesDataset",),
    "edm3d.training.datasets.volumes": ("VolumesDataset",),
})
SAMPLERS = _names({
    "edm3d.samplers": ("ablation_sampler", "ddim_sampler", "edm_sampler", "multistep_sampler"),
})
SCALES = _names({"edm3d.physics.activity_scale": ("ActivityScale",)})
SIMULATIONS = _names({"edm3d.physics.dose": ("DoseSimulation",)})


def is_listed(name: object, allowed: frozenset[str]) -> bool:
    """Whether a `_target_` stands on a list, letter by letter; names of ours may be short. Nothing is imported."""
    return isinstance(name, str) and (name in allowed or f"edm3d.{name}" in allowed)
