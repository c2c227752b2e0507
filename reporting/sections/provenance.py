"""Where the volumes of a report come from, on which terms, and what is written down of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from edm3d.reporting.comparison import NOT_STATED, Comparison
from edm3d.reporting.section import Score, Section
from edm3d.utils.checks import listed

METHODS = {
    "EDM": "Karras T, Aittala M, Aila T, Laine S. Elucidating the design space of diffusion-based generative models. "
           "NeurIPS 2022",
    "MONAI": "Cardoso MJ, et al. MONAI: an open-source framework for deep learning in healthcare. "
             "arXiv:2211.02701, 2022",
}
OF_SAMPLERS = {
    "ddim_sampler": ("DDIM", "Song J, Meng C, Ermon S. Denoising diffusion implicit models. ICLR 2021"),
    "multistep_sampler": ("multistep solver", "Zhang Q, Chen Y. Fast sampling of diffusion models with exponential "
                                              "integrator. ICLR 2023"),
}
LATENT = {"latent diffusion": "Rombach R, et al. High-resolution image synthesis with latent diffusion models. "
                              "CVPR 2022"}
PRIVACY = "copies of training volumes"


class Provenance(Section):
    """Extractors, and what to cite of the program; what is recorded of the volumes is said by the frame, and the page
    shows extractors with their distances.

    provenance.extractors.NAME.{name, kind, source, hash, preprocessing, relative, width, seconds}
    """

    words = {"licences": "Terms as files state them: the licence that the provenance of a volumes file names, and that "
                         "of the card beside a published network. 'Not stated' says that no file does, not that there "
                         "are no terms."}
    sets = ()

    def compute(self, found: Any, context: Comparison) -> dict[str, Any]:
        features = context.features
        records = {} if features is None else features.records
        return {"provenance": {"extractors": {name: {**record._asdict(), "seconds": features.seconds.get(name)}
                                              for name, record in records.items()}}}

    def cited(self, report: dict) -> Mapping[str, str]:
        target = str((report["generated"]["sampling"].get("sampler") or {}).get("_target_", "")).rpartition(".")[2]
        latent = LATENT if report.get("first_stage", {}).get("available") else {}
        return METHODS | dict([OF_SAMPLERS[target]] if target in OF_SAMPLERS else []) | latent

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        licences, recorded = report.get("licences", {}), recorded_items(report)
        lacking = [name for name, known in recorded.items() if not known]
        said = f"of {len(recorded)}" + (f"; not known: {listed(lacking)}" if lacking else "")
        unsaid = [] if report.get("copies", {}).get("available") else [
            Score(PRIVACY, said="not measured in this report")]
        labels = report["generated"].get("labels", {})
        return {
            "compliance": [*unsaid, *(Score(f"licence of the {name}", said=text) for name, text in licences.items())],
            "comprehension": [Score("items of provenance that are recorded", len(recorded) - len(lacking), said=said)],
            "completeness": [Score("label maps of generated volumes", said=labels.get("reason") or
                                   ("there, by a segmenter" if "network" in labels else "there"))]}


def recorded_items(report: Mapping[str, Any]) -> dict[str, bool]:
    """What should be known of volumes and how they were made, and whether it is written down."""
    real, generated, licences = report["real"], report["generated"], report.get("licences", {})
    training = generated.get("trained_on", {})
    return {"hash of the real file": bool(real.get("content_hash")),
            "how the real file was made": bool(real.get("preparation")),
            "hash of the samples": bool(generated.get("sha256")), "seeds": bool(generated.get("seeds")),
            "hash of the snapshot": len(str(generated.get("snapshot_hash", ""))) >= len("12345678"),
            "sampler settings": bool(generated.get("sampling")),
            "hash of the training data": bool(training.get("content_hash")), "versions": bool(report.get("versions")),
            **{f"licence of the {name}": text != NOT_STATED for name, text in licences.items()}}
