"""The schema of an experiment: its keys with types and defaults, but for what stands in the signatures of targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from edm3d.utils.names import one_line
from edm3d.utils.plain import from_plain, shown


@dataclass
class Options:
    """Run-level options of training (training.options.*)."""

    seed: int = 0                       # of the data order and of all randomness of the images
    noise: str | None = None            # how it is drawn: generators | counters (of a batch at once, other numbers);
                                        # null = as the run began; a new one by counters on CUDA, generators elsewhere
    batch_size: int = MISSING           # images per step over all ranks
    batch_gpu: int | None = None        # images per rank and round; smaller than batch_size / ranks: accumulate
    total_kimg: float = MISSING         # length of the training in thousands of images
    kimg_per_tick: float = 1            # how often progress is printed
    snapshot_ticks: int | None = 10     # how often EMA weights are saved, null = at the end only
    state_ticks: int | None = 10        # how often everything to resume from is saved, null = at the end only
    keep_snapshots: int = 3             # older ones are deleted
    keep_states: int = 2
    resume: str | None = None           # latest | a training-state file or a run folder
    init_from: str | None = None        # start a new run from the weights of a snapshot, as far as they fit
    trainable: Any = None               # the part that moves: attention | conditioning | lora | lora:RANK | re:PATTERN,
                                        # or a list of these; null or all = everything
    lr_rampup_kimg: float = 0
    lr_schedule: str = "constant"       # constant | cosine (to 0 at total_kimg)
    ema_halflife_kimg: Any = 500.0      # or a list: the first is shown and validated, each gets a snapshot of its own
    ema_rampup_ratio: float | None = 0.05
    grad_clip: float | None = None      # global norm above which gradients are scaled down
    precision: str = "auto"             # fp32 | bf16 | fp16 | auto (bf16 where the processor multiplies it)
    tf32: bool = False                  # CUDA multiplies what is float32 in TF32
    cudnn_benchmark: bool = False       # cuDNN tries its kernels out on every new shape
    channels_last: bool = False
    checkpointing: bool = False         # blocks keep their inputs only and run again backwards: less memory, more time
    compile: bool = False
    graphs: bool = False                # CUDA replays what is compiled, launching no kernel by itself
    tune: bool = False                  # a new run measures which channels_last, compile and batch_gpu are fastest
    profile: bool = False               # where the time of a step goes: RUN/profile
    parallel: str = "ddp"               # ddp | fsdp (every rank holds a share of the weights)
    timeout_s: float = 600              # how long ranks wait for one that is late
    num_threads: int = 0                # CPU threads per rank, 0 = OMP_NUM_THREADS, or cores / ranks
    num_workers: int = 0                # data loader processes per rank
    min_psnr: float | None = 20         # dB that diffusion asks of its latents, decoded again; null: no matter
    max_bad_steps: int = 20             # so many steps in a row without finite loss and gradients end the run
    wandb: str | None = None            # W&B project to log to as well
    trust: bool = False                 # build any target that a first stage's file names, not only the allow-list
    device: str = "auto"                # cpu | cuda | auto
    dry_run: bool = False               # check and print the config, then stop
    debug: bool = False                 # show the traceback of errors
    desc: str | None = None             # goes into the run folder's name
    run_root: str = "results"


@dataclass
class Validation:
    """Held-out measurement while training (training.validation.*)."""

    split: str = "val"
    max_items: int = 64                 # 0 = none
    every_ticks: int = 10
    preview_ticks: int | None = None    # how often pictures are made (training.preview), null = never
    preview_items: int = 4              # held-out volumes or samples in them
    sample_ticks: int | None = None     # how often samples are drawn and held against what is held out, null = never
    num_samples: int = 32               # so many
    best: str | None = None             # what network-best.pt goes by, e.g. sample_frechet; null = as the task has it


@dataclass
class Privacy:
    """Differential privacy of training (training.privacy.*)."""

    target_epsilon: float | None = None  # the budget; null = no privacy
    target_delta: float | None = None   # below 1 over the number of records
    max_grad_norm: float = 1            # L2 norm to which the gradient of each unit is clipped
    unit: str = "record"                # record | group (patient): whose presence is hidden
    noise_multiplier: float | None = None  # of max_grad_norm; null: what spends the budget in total_kimg
    noise_multiplicity: int = 1         # noise levels per image, averaged before clipping


@dataclass
class Training:
    """The training half of an experiment."""

    task: str = MISSING                 # autoencoder | diffusion | segmentation | classification
    dataset: dict[str, Any] = field(default_factory=dict)
    batch_transform: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    validation: Validation = field(default_factory=Validation)
    privacy: Privacy = field(default_factory=Privacy)
    options: Options = field(default_factory=Options)


@dataclass
class PartGuidance:
    """The same of one part of the condition (sampling.guidance.parts.PART, a strength or these)."""

    strength: float
    interval: list[float] | None = None  # null = as for all parts

    def __post_init__(self) -> None:
        self.strength = float(self.strength)
        self.interval = None if self.interval is None else [float(level) for level in self.interval]


@dataclass
class Guidance:
    """How far samples are pushed towards their condition (sampling.guidance.*).

    ValueError for what can be no strength of a part; which parts there are, it does not know.
    """

    strength: float = 1                 # of all parts: 1 = the network alone; more pushes away from the guide
    interval: list[float] | None = None  # noise levels [lo, hi] between which the guide acts, null = all
    network: str | None = None          # a worse or earlier snapshot as guide (autoguidance); null = no condition
    parts: dict[str, Any] = field(default_factory=dict)  # PART: strength, or PART: {strength: w, interval: [lo, hi]}

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping):
            raise ValueError(f"sampling.guidance.parts={shown(self.parts)}: wanted strengths of parts by name, as in "
                             "{semantic: 3}")
        self.parts = {name: part_guidance(name, value) for name, value in self.parts.items()}


@dataclass
class Quality:
    """Which samples are drawn again (sampling.quality.*)."""

    attempts: int | None = None         # draws of a seed at most, null = all are kept as they come
    reference: str | None = None        # volumes.h5: its training split is usual; null = what the snapshot knows
    quantile: float = 0.005             # of the reference: what lies below it, or above 1 - it, is unusual
    margin: float = 0.1                 # by which ranges are widened on each side, as a share of their width


@dataclass
class Sampling:
    """The sampling half of an experiment."""

    network: str | None = None          # experiment name, run folder or snapshot; null = this experiment's newest run
    seeds: str | None = None            # null = 0-15; one for each slice of an own scan, or row measured
    batch_size: int = 16                # per rank
    outdir: str = MISSING
    format: str = "h5"                  # h5 | npz | png (of 2D: h5, and a PNG for each image and label map)
    nifti: bool = True                  # one NIfTI per seed and kind
    classes: list[str] | None = None    # of a class-conditional network: the seeds go through them in turn; null = all
    attributes: dict[str, Any] = field(default_factory=dict)  # by name, in units of the data: numbers; null = missing
    sweep: dict[str, Any] = field(default_factory=dict)  # an attribute: [lo, hi, n], so many values for every seed
    pairs: bool = False                 # a sample of every class (or of sampling.classes) for each seed, from one noise
    conditions: str | None = None       # a file with a row for each seed: table, folder of maps, volumes, samples;
                                        # PET: a low-dose scan, or phantoms; null = held-out phantoms
    conditions_split: str | None = None  # its rows in volumes or latents; null = test, else val, else the first; of
                                        # phantoms null = all
    samples_per_condition: int = 1      # draws of each seed, told the same: number seed * K + k is draw k
    antithetic: bool = False            # draws in pairs, the second from minus the noise of the first
    noise: str | None = None            # how it is drawn: generators (on the CPU) | counters (on the device, other
                                        # numbers); null = counters on CUDA, generators elsewhere
    scan: dict[str, Any] = field(default_factory=dict)  # PET: dose, counts, iterations, ... over training's; unit; fit
    overwrite: bool = False             # draw anew where the outdir holds samples of another network or other settings
    trajectory: bool = False            # keep the denoised image of every step beside the samples
    decode: bool = True                 # through the first stage that the snapshot carries
    autoencoder: str | None = None      # decode by this autoencoder; its hash must be the snapshot's, if that has one
    refiner: str | None = None          # experiment, run folder or snapshot that draws what the first stage cannot keep
    refiner_sampler: dict[str, Any] = field(default_factory=dict)  # its arguments, over those that it was trained with
    tile: list[int] | None = None       # decode in tiles of so many voxels per axis, in the array's order; null = whole
    tile_overlap: float = 0.25          # of neighbouring tiles, as a share of a tile
    tile_mode: str = "blend"            # blend | exact (as the whole volume, in slabs)
    tile_compare: bool = True           # say by how much blended tiles differ from the whole, in the memory of exact
    montage: int = 6                    # samples in samples.png, 0 = none
    trajectory_montage: int = 0         # samples whose way from noise is a picture and a table in trajectories/
    gif: int = 0                        # samples in samples.gif, slice by slice, 3 at most (2D: one by one)
    real: str | None = None             # volumes.h5 shown above them; null = the file that the snapshot was trained on
    precision: str = "fp32"
    compile: bool = False               # torch.compile of the network, not of guide, refiner and first stage
    num_threads: int = 0                # as training.options.num_threads
    device: str = "auto"
    trust: bool = False                 # build any target that the snapshot names, not only those on the allow-list
    guidance: Guidance = field(default_factory=Guidance)
    quality: Quality = field(default_factory=Quality)
    start: str = "noise"                # noise | mean (what a network with a condition image expects; lower sigma_max)
                                        # | condition (the condition image itself)
    start_sigma: float | None = None    # start=condition, unless start says mean, at this noise level for sigma_max
    sampler: dict[str, Any] = field(default_factory=dict)
    posterior: dict[str, Any] = field(default_factory=dict)  # given a measurement; {} = none


# dicts of the sampling half that are a target with its arguments; the names in all others are the user's
TARGETS = ("sampling.sampler", "sampling.posterior")


@dataclass
class Experiment:
    """What one YAML in configs/ holds."""

    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)


def sampling_options(config: dict) -> Sampling:
    """The sampling half of a plain config as typed options."""
    half = config["sampling"]
    return Sampling(**{**half, "guidance": Guidance(**half["guidance"]), "quality": Quality(**half["quality"])})


def part_guidance(name: str, value: object) -> PartGuidance:
    """What is said of a part's guidance, a number or names with values, as typed options."""
    if isinstance(value, PartGuidance):
        return value
    given = value if isinstance(value, Mapping) else {"strength": value}
    return from_plain(PartGuidance, given, f"sampling.guidance.parts.{one_line(str(name))}")
