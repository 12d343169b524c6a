"""The same VAE written by hand in PyTorch, its decoder's matrix products alone, and pythae, as
subjects.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from benchmarks.problems import Index, Problem
from benchmarks.workers import Turns

LEARNING_RATE = 1e-3
ROWS = 1000
"""Pairs of a datum and a particle in one chunk."""
ANNEALED_ROWS = 200
"""Pairs of a datum and a chain in one chunk."""


class VAE(nn.Module):
    """Encoder, decoder, and log-weights whose constants cancel: nothing is computed that is not
    needed.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(problem)

    def log_weights(self, x: Tensor, num_particles: int) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x): `[B]` for one particle, else `[K, B]`."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
        noise = torch.randn(
            loc.shape if num_particles == 1 else (num_particles, *loc.shape), device=x.device
        )
        z = loc + scale * noise
        logits = self.decoder(z)
        log_lik = -cross_entropy(logits, x.expand_as(logits), reduction="none").sum(-1)
        return log_lik + 0.5 * (noise.square() - z.square() + log_variance).sum(-1)

    def loss(self, x: Tensor, num_particles: int, importance: bool) -> Tensor:
        """The negative ELBO, or with `importance` the negative IWAE bound, in nats per datum."""
        log_weight = self.log_weights(x, num_particles)
        if importance and num_particles > 1:
            return -(log_weight.logsumexp(0) - math.log(num_particles)).mean()
        return -log_weight.mean()


def networks(problem: Problem) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder; pyroae's where they are convolutions."""
    torch.manual_seed(0)
    if not problem.widths:
        from pyroae.nn import Conv

        shape = (math.isqrt(problem.features),) * 2
        return Conv().encoder(shape, 2 * problem.latent), Conv().decoder(problem.latent, shape, 1)
    return _chain(problem.encoder_sizes), _chain(problem.decoder_sizes)


def _chain(sizes: list[tuple[int, int]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in sizes:
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


# Training.


def train(problem: Problem, turns: Turns, compiled: bool = False, adam: str = "fused") -> None:
    """compiled: gathering, draws and loss by `torch.compile`.

    adam: torch's fused one, or its plain one "compiled".
    """
    device = torch.device(problem.device)
    vae, x = VAE(problem).to(device), torch.from_numpy(problem.data()).to(device)
    importance, k = problem.objective != "trace-elbo", problem.num_particles

    def loss_of(data: Tensor, rows: Tensor) -> Tensor:
        return vae.loss(data.index_select(0, rows), k, importance)

    if compiled:
        loss_of = torch.compile(loss_of)
    optimizer = _adam(vae, adam)
    update = torch.compile(optimizer.step) if adam == "compiled" else optimizer.step

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(x, rows).backward()
        update()

    turns.serve(_steps(step, problem))


def _adam(vae: VAE, kind: str) -> torch.optim.Optimizer:
    if kind == "fused":
        return torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True)
    return torch.optim.Adam(
        vae.parameters(), lr=torch.tensor(LEARNING_RATE)
    )  # a tensor: compiled once, not for each step


def train_graphed(problem: Problem, turns: Turns) -> None:
    """The whole step, batch and optimizer included, as one CUDA graph of `torch.compile`d code."""
    turns.serve(_steps(graphed_step(problem), problem))


def graphed_step(problem: Problem) -> Callable[[Tensor], None]:
    """From the rows of a batch to a step, replayed."""
    device = torch.device(problem.device)
    vae, x = VAE(problem).to(device), torch.from_numpy(problem.data()).to(device)
    rows = torch.zeros(problem.batch, dtype=torch.long, device=device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE, fused=True, capturable=True)
    importance, k = problem.objective != "trace-elbo", problem.num_particles
    loss_of = torch.compile(
        lambda data, index: vae.loss(data.index_select(0, index), k, importance)
    )

    def whole() -> None:
        optimizer.zero_grad()
        loss_of(x, rows).backward()
        optimizer.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            whole()
    torch.cuda.current_stream().wait_stream(beside)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole()

    def step(index: Tensor) -> None:
        rows.copy_(index)
        graph.replay()

    return step


def _steps(step: Callable[[Tensor], Any], problem: Problem) -> Callable[[int], None]:
    index = Index(problem)

    def block(count: int) -> None:
        for rows in torch.from_numpy(index.next(count)).to(problem.device):
            step(rows)
        _wait(problem)

    return block


def _wait(problem: Problem) -> None:
    if problem.device != "cpu":
        torch.cuda.synchronize()


# Log-likelihood: a step is one datum.


def likelihood(problem: Problem, turns: Turns, compiled: bool = False) -> None:
    """Chunks of about 1,000 pairs of a datum and a particle."""
    vae = VAE(problem).to(problem.device)
    turns.serve(
        _likelihoods(torch.compile(vae.log_weights) if compiled else vae.log_weights, problem)
    )


def distributions_likelihood(problem: Problem, turns: Turns) -> None:
    """The same with `torch.distributions`, as it is usually written."""
    from torch.distributions import Bernoulli, Independent, Normal

    torch.distributions.Distribution.set_default_validate_args(False)
    vae = VAE(problem).to(problem.device)
    zeros = torch.zeros(problem.latent, device=problem.device)
    prior = Independent(Normal(zeros, zeros + 1), 1)

    def log_weights(x: Tensor, num_particles: int) -> Tensor:
        loc, log_variance = vae.encoder(x).chunk(2, -1)
        posterior = Independent(Normal(loc, (0.5 * log_variance).exp()), 1)
        z = posterior.rsample((num_particles,))
        log_lik = Independent(Bernoulli(logits=vae.decoder(z)), 1).log_prob(x)
        return log_lik + prior.log_prob(z) - posterior.log_prob(z)

    turns.serve(_likelihoods(log_weights, problem))


def _likelihoods(
    log_weights: Callable[[Tensor, int], Tensor], problem: Problem
) -> Callable[[int], None]:
    k = problem.num_particles
    on_gpu = problem.device != "cpu"
    data_at_once, particles_at_once = (100, 1000) if on_gpu else (20, 50)

    @torch.no_grad()
    def block(count: int) -> None:
        x = torch.from_numpy(problem.data(count)).to(problem.device)
        for part in x.split(data_at_once):
            weights = [
                log_weights(part, min(particles_at_once, k - done))
                for done in range(0, k, particles_at_once)
            ]
            torch.cat(weights).logsumexp(0) - math.log(k)
        _wait(problem)

    return block


def products(problem: Problem, turns: Turns) -> None:
    """The decoder's matrix products alone, for as many pairs of a datum and a particle: what no
    implementation can avoid.
    """
    rows = ROWS if problem.device == "cpu" else 100 * ROWS
    weights = [torch.randn(sizes, device=problem.device) for sizes in problem.decoder_sizes]
    z = torch.randn(rows, problem.latent, device=problem.device)
    outputs = [torch.empty(rows, weight.shape[1], device=problem.device) for weight in weights]

    def block(count: int) -> None:
        for _ in range(math.ceil(count * problem.num_particles / rows)):
            h = z
            for weight, output in zip(weights, outputs, strict=True):
                h = torch.mm(h, weight, out=output)
        _wait(problem)

    turns.serve(block)


def annealing_products(problem: Problem, turns: Turns, num_distributions: int) -> None:
    """The decoder's matrix products alone, forwards and backwards, for every gradient of an
    annealing with 16 chains, its pilot of 4 included; each core computes half of them.
    """
    threads, rows = torch.get_num_threads(), ANNEALED_ROWS
    weights = [torch.randn(outputs, inputs) for inputs, outputs in problem.decoder_sizes]
    chains = 16 * (num_distributions - 1) + 4 * (num_distributions + 29)
    passes = math.ceil(10 * chains * problem.batch / rows / threads)

    @torch.no_grad()
    def share(_: int) -> None:
        torch.set_num_threads(1)
        layers = [torch.randn(rows, size) for size in (problem.latent, *map(len, weights))]
        for _ in range(passes):
            for i, weight in enumerate(weights):
                torch.mm(layers[i], weight.t(), out=layers[i + 1])
            for i, weight in reversed([*enumerate(weights)]):
                torch.mm(layers[i + 1], weight, out=layers[i])
            layers[0].clamp_(-1, 1)

    def block(count: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(count):
                list(pool.map(share, range(threads)))

    turns.serve(block)


def pythae_likelihood(problem: Problem, turns: Turns) -> None:
    """`get_nll` of pythae's VAE, with networks of the same sizes, without gradients."""
    from pythae.models import VAE as Model
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    torch.manual_seed(0)
    image = (1, *(math.isqrt(problem.features),) * 2)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _chain(problem.encoder_sizes)

        def forward(self, x: Tensor) -> Any:
            loc, log_variance = self.layers(x.flatten(1)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _chain(problem.decoder_sizes)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).sigmoid().unflatten(-1, image))

    config = VAEConfig(input_dim=image, latent_dim=problem.latent, reconstruction_loss="bce")
    model = Model(config, encoder=Encoder(), decoder=Decoder()).to(problem.device).eval()

    @torch.no_grad()
    def block(count: int) -> None:
        x = torch.from_numpy(problem.data(count)).to(problem.device).unflatten(-1, image)
        model.get_nll(x, n_samples=problem.num_particles, batch_size=100)
        _wait(problem)

    turns.serve(block)
