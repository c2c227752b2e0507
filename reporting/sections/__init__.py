"""What the reports show, in order: a new number or section is one file here and one line below."""

from reporting.sections.decoded_pictures import DecodedPictures
from reporting.sections.fidelity import Fidelity
from reporting.sections.heart import HeartWall
from reporting.sections.held_out import HeldOut
from reporting.sections.intensities import Intensities
from reporting.sections.latents import Latents
from reporting.sections.sample_pictures import SamplePictures
from reporting.sections.scalars import Scalars
from reporting.sections.structures import Structures
from reporting.sections.texture import Texture
from reporting.sections.variety import Variety

# Numbers of one volume, which the section Scalars compares.
NUMBERS = (
    Structures(),
    HeartWall(),
    Intensities(),
)
# Sections of the report of generated volumes against real ones.
COMPARISON = (
    Scalars(NUMBERS),
    SamplePictures(),
    Texture(),
    Variety(),
    HeldOut(),
)
# Sections of the report of a first stage.
FIRST_STAGE = (
    Fidelity(),
    DecodedPictures(),
    Latents(),
)
