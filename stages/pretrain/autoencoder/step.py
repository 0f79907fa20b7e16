"""One training step of the autoencoder, with or without a discriminator; on CUDA replayed from a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.pretrain.autoencoder.discriminator import (
    Discriminator,
    deceiving_loss,
    feature_distance,
    judging_loss,
    random_crops,
)
from stages.pretrain.autoencoder.initialisation import block_matrices
from stages.pretrain.autoencoder.losses import AudioDistances, Distances, latent_divergence
from stages.pretrain.autoencoder.optimizer import MovingAverage, MuonAdamW
from stages.pretrain.autoencoder.recipe import Recipe
from stages.pretrain.autoencoder.trainee import Trainee

TERMS = (*Distances._fields, "divergence", "gradient norm", "verdict", "features", "judging")
REPORTED_SHARE = 0.02
"""Share of a new step in the running means of the terms."""
WARM_UP_RUNS = 3
DISCRIMINATOR_LR = 3e-4


class TrainingStep:
    """Networks, optimisers and the batch they work on; calling it makes one step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.trainee = Trainee(recipe.shape, recipe.seed).to(device)
        if recipe.decoder_only:
            self._freeze_encoder()
        self.parameters = [p for p in self.trainee.autoencoder.parameters() if p.requires_grad]
        matrices = [m for m in block_matrices(self.trainee.autoencoder) if m.requires_grad]
        self.optimizer = MuonAdamW(self.parameters, matrices, lr=recipe.lr, muon_lr=recipe.muon_lr)
        self.average = MovingAverage(self.parameters, recipe.average_decay)
        self.distances = AudioDistances(recipe.floor, compiled=recipe.compiled).to(device)
        self.audio_BAX = torch.zeros(recipe.batch_size, 2, recipe.num_frames * 4096, device=device)
        self.waveform_weight = torch.tensor(recipe.waveform[0], device=device)
        self.adversarial_weight = torch.tensor(recipe.adversarial, device=device)
        self.running_means = torch.zeros(len(TERMS), device=device)
        self.features, self.made = self.trainee.features, self.trainee.audio
        if recipe.compiled:
            self.features, self.made = (torch.compile(f, dynamic=False) for f in (self.features, self.made))
        self.discriminator: Discriminator | None = None
        self.judge: MuonAdamW | None = None
        if recipe.adversarial:
            self.discriminator, self.judge = self._opponent(device)
        self._run = captured(self._eager, device)

    def _opponent(self, device: torch.device) -> tuple[Discriminator, MuonAdamW]:
        discriminator = Discriminator().to(device)
        return discriminator, MuonAdamW(list(discriminator.parameters()), (), lr=DISCRIMINATOR_LR, muon_lr=0.0)

    def _freeze_encoder(self) -> None:
        bottleneck = self.trainee.autoencoder.bottleneck
        for parameter in (*self.trainee.autoencoder.encoder.parameters(), bottleneck.scaling_factor, bottleneck.bias):
            parameter.requires_grad_(False)

    def __call__(self) -> None:
        self._run()

    def _eager(self) -> None:
        recipe, audio_BAX = self.recipe, self.audio_BAX
        self.optimizer.clear_gradients()
        draws = self.trainee.draws(audio_BAX)
        with torch.set_grad_enabled(not recipe.decoder_only):
            feature_BCT = self.features(audio_BAX)
        if not recipe.decoder_only:
            self.trainee.follow_deviation(feature_BCT)
        divergence = latent_divergence(self.trainee.latents(feature_BCT))
        made_BAX = self.made(self.trainee.with_noise(feature_BCT, recipe.latent_noise, draws), draws.tokens)
        distances = self.distances(made_BAX, audio_BAX)
        weights = (recipe.log_stft, recipe.log_mel, recipe.convergence, self.waveform_weight, recipe.level)
        loss = recipe.divergence * divergence
        for weight, distance in zip(weights, distances, strict=True):
            loss = loss + weight * distance
        verdict, features, judging = self._judged(made_BAX)
        loss = loss + self.adversarial_weight * (verdict + 2 * features)
        loss.backward()
        norm = self.optimizer.step()
        self.average.follow()
        terms = torch.stack([*distances, divergence, norm, verdict, features, judging]).detach()
        self.running_means.lerp_(terms, REPORTED_SHARE)

    def _judged(self, made_BAX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update the discriminator; its verdict on what was made, the distance of its features, and its own loss."""
        if self.discriminator is None or self.judge is None:
            none = made_BAX.new_zeros(())
            return none, none, none
        real_BAX, made_BAX = random_crops(self.audio_BAX, made_BAX)
        self.discriminator.requires_grad_(True)
        self.judge.clear_gradients()
        judging = judging_loss(self.discriminator(torch.cat([real_BAX, made_BAX.detach()])))
        judging.backward()
        self.judge.step(largest_norm=10.0)
        # From here on it only passes gradients through.
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            real = self.discriminator(real_BAX)
        made = self.discriminator(made_BAX)
        return deceiving_loss(made), feature_distance(made, real), judging

    def terms(self) -> dict[str, float]:
        """Running means of the terms of the loss."""
        return {name: round(value, 4) for name, value in zip(TERMS, self.running_means.tolist(), strict=True)}


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step`, on CUDA replayed from a graph that its first call captures."""
    return step if device.type != "cuda" else _Graph(step)


class _Graph:
    def __init__(self, step: Callable[[], None]) -> None:
        self.step, self.graph = step, torch.cuda.CUDAGraph()
        self.is_captured = False

    def __call__(self) -> None:
        if not self.is_captured:
            self._capture()
        self.graph.replay()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            self.step()
        self.is_captured = True
