"""Settings of one run of the autoencoder's training. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.pretrain.autoencoder.architecture import Shape
from stages.pretrain.rate_schedule import RateSchedule


@dataclass(frozen=True, kw_only=True)
class Recipe(RateSchedule):
    """Loss weights, rates and lengths; shares of the run are of its seconds."""

    shape: Shape = field(default_factory=Shape)
    seed: int = 0
    batch_size: int = 16
    num_frames: int = 16
    lr: float = 2e-3
    muon_lr: float = 4e-3
    last_rate: float = 0.05
    log_stft: float = 0.5
    log_mel: float = 1.0
    convergence: float = 1.0
    waveform: tuple[float, float] = (10.0, 1.0)
    """Weight at the start, and from `waveform_until` on."""
    waveform_until: float = 0.7
    level: float = 0.0
    """Weight of the levels of wide bands, over several frames: what lowers the level of noise costs more."""
    divergence: float = 0.05
    latent_noise: float = 0.04
    floor: float = 1e-4
    average_decay: float = 0.999
    adversarial: float = 0.0
    """Weight of the discriminator's verdict; its features count twice as much. 0 = no discriminator."""
    adversarial_ramp: tuple[float, float] = (0.0, 0.0)
    """Shares of the run between which that weight rises from 0 to its own; the discriminator learns all along."""
    decoder_only: bool = False
    """Leave the encoder and the bottleneck, and so all latents, as they are."""
    compiled: bool = False

    def waveform_at(self, share: float) -> float:
        """Weight of the waveform term at a share of the run."""
        first, last = self.waveform
        return first + (last - first) * min(1.0, share / self.waveform_until) if self.waveform_until else last

    def adversarial_at(self, share: float) -> float:
        """Weight of the discriminator's verdict at a share of the run."""
        first, last = self.adversarial_ramp
        if last <= first:
            return self.adversarial
        return self.adversarial * min(1.0, max(0.0, share - first) / (last - first))
