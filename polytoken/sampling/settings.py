"""Rules of samplers as a configuration states them, before the family of the generator is known."""

from __future__ import annotations

from dataclasses import dataclass

from polytoken.sampling.flow import Method
from polytoken.sampling.guidance import Guidance


@dataclass(frozen=True)
class SamplerSettings(Guidance):
    """Guidance, and the rules of both families; a rule that is None has the default of its family.

    :meth:`Guidance.of` turns them into a CategoricalSampler, for a generator of codes, or a FlowSampler, for one of
    latents, and refuses rules of the other.

    Args:
        guidance: see :class:`~polytoken.sampling.Guidance`.
        guidance_schedule: see there.
        interval: see there.
        temperature: of codes; see :class:`~polytoken.sampling.CategoricalSampler`.
        top_k: of codes.
        top_p: of codes.
        method: of latents; see :class:`~polytoken.sampling.FlowSampler`.
        steps: of latents.
        shift: of latents.
        guided_channels: of latents.
        snap: of latents.
    """

    temperature: float | list[float] | None = None
    top_k: int | list[int] | None = None
    top_p: float | list[float] | None = None
    method: Method | None = None
    steps: int | None = None
    shift: float | None = None
    guided_channels: int | None = None
    snap: bool | None = None
