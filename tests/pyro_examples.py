"""Pyro's example programs, from a folder that has them, at small sizes and with synthetic data of
the right kind.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_feasible
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

FOLDER = "PYROAE_PYRO_EXAMPLES"
"""The environment variable with the folder `examples` of a copy of Pyro's repository."""
UNNEEDED = ("visdom", "wget", "utils.vae_plots", "utils.mnist_cached", "scanpy")
"""Modules that the examples import for plots and downloads."""


@dataclass(frozen=True)
class Example:
    """A model, a guide and their arguments, tensors `[N, ...]` each."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]


def folder() -> Path | None:
    """The folder of the examples, if there is one."""
    given = os.environ.get(FOLDER)
    return Path(given) if given and (Path(given) / "vae" / "vae.py").is_file() else None


@contextmanager
def _importable(where: Path) -> Iterator[None]:
    """A context in which a script's neighbours can be imported, and what it does not need is
    empty.
    """
    before, kept = (
        set(sys.modules),
        {name: sys.modules[name] for name in UNNEEDED if name in sys.modules},
    )
    sys.path.insert(0, str(where))
    sys.modules.update({name: MagicMock(name=name) for name in UNNEEDED})
    try:
        yield
    finally:
        sys.path.remove(str(where))
        for name in [
            n for n in sys.modules if n not in before and _is_under(sys.modules[n], where)
        ] + list(UNNEEDED):
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def _is_under(module: Any, where: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and where in Path(file).parents


def script(path: str) -> ModuleType:
    """The module of a script in the folder of the examples; the random numbers and the default type
    stay as they are.
    """
    root = folder()
    assert root is not None
    file = root / path
    spec = importlib.util.spec_from_file_location(
        "pyro_example_" + path.replace("/", "_").removesuffix(".py"), file
    )
    assert spec is not None
    assert spec.loader is not None
    module, dtype = importlib.util.module_from_spec(spec), torch.get_default_dtype()
    with _importable(file.parent), torch.random.fork_rng():
        spec.loader.exec_module(module)
    torch.set_default_dtype(dtype)
    return module


def images(count: int = 5) -> Tensor:
    """Black and white pixels, `[N, 784]`."""
    return torch.bernoulli(torch.full((count, 784), 0.3))


def labels(count: int = 5, states: int = 10) -> Tensor:
    """One-hot, `[N, states]`."""
    return torch.nn.functional.one_hot(torch.arange(count) % states, states).to(
        torch.get_default_dtype()
    )


def vae() -> Example:
    net = script("vae/vae.py").VAE(z_dim=4, hidden_dim=16)
    x = images()
    return Example(net.model, net.guide, (x,))


def ss_vae(enum: str | None = None, *, labelled: bool = False) -> Example:
    """enum: "parallel" for the setting in which the networks take the classes as one more
    dimension.
    """
    net = script("vae/ss_vae_M2.py").SSVAE(
        z_dim=4, hidden_layers=[16], config_enum=enum, aux_loss_multiplier=46
    )
    args = (images(), labels()) if labelled else (images(),)
    return Example(net.model, net.guide, args)


def ss_vae_aux() -> Example:
    """The auxiliary loss, which has no latent site."""
    net = script("vae/ss_vae_M2.py").SSVAE(z_dim=4, hidden_layers=[16], aux_loss_multiplier=46)
    args = (images(), labels())
    return Example(net.model_classify, net.guide_classify, args)


def cvae() -> Example:
    """One quadrant given, three to be found; pixels that are not of a part are −1 there."""
    baseline = script("cvae/baseline.py").BaselineNet(16, 16)
    net = script("cvae/cvae.py").CVAE(4, 16, 16, baseline.requires_grad_(False))
    whole = images().reshape(-1, 28, 28)
    given = torch.zeros(28, 28, dtype=torch.bool)
    given[14:, :14] = True
    args = (whole.masked_fill(~given, -1.0), whole.masked_fill(given, -1.0))
    return Example(net.model, net.guide, args)


def dmm(num_iafs: int = 0, annealing: float = 1.0) -> Example:
    """Sequences of three lengths, so that some steps are masked; annealing: the scale of the latent
    sites.
    """
    module = script("dmm.py")
    net = module.DMM(
        input_dim=6,
        z_dim=3,
        emission_dim=5,
        transition_dim=5,
        rnn_dim=7,
        num_iafs=num_iafs,
        iaf_dim=5,
    )

    def batch(x: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        """The arguments of the script's programs, with the sequences in the order in which they are
        given.
        """
        x = x[:, : int(lengths.max())]
        backwards = module.poly.reverse_sequences(x, lengths)
        packed = pack_padded_sequence(backwards, lengths, batch_first=True, enforce_sorted=False)
        return (
            x,
            packed,
            module.poly.get_mini_batch_mask(x, lengths).to(x.dtype),
            lengths,
            annealing,
        )

    x, lengths = torch.bernoulli(torch.full((4, 5, 6), 0.4)), torch.tensor([5, 3, 4, 5])
    return Example(
        lambda *args: net.model(*batch(*args)), lambda *args: net.guide(*batch(*args)), (x, lengths)
    )


def air(batch_size: int | None = None, *, masking: bool = True, baselines: bool = True) -> Example:
    """Two steps on images of 8 × 8; batch_size: of the subsample that the guide draws, of 6."""
    net = script("air/air.py").AIR(
        num_steps=2, x_size=8, window_size=4, z_what_size=3, rnn_hidden_size=6,
        encoder_net=[5], decoder_net=[5], predict_net=[5], bl_predict_net=[5],
        use_masking=masking, use_baselines=baselines, decoder_output_bias=-2.0, likelihood_sd=1.0,
    )  # fmt: skip
    net = net.to(torch.get_default_dtype())
    for baseline in (
        net.bl_rnn,
        net.bl_predict,
        net.bl_embed,
    ):  # which TraceGraph_ELBO alone trains
        baseline.requires_grad_(False)
    x = torch.rand(6, 8, 8)
    return Example(
        partial(net.model, batch_size=batch_size), partial(net.guide, batch_size=batch_size), (x,)
    )


def cevae(outcome: str = "bernoulli", *, blocked: bool = False) -> Example:
    """blocked: without the guide's sites for treatment and outcome, which are observed."""
    from pyro.contrib.cevae import CEVAE

    net = CEVAE(feature_dim=3, outcome_dist=outcome, latent_dim=2, hidden_dim=8, num_layers=2)
    if blocked:
        for predictor in (net.guide.t_nn, net.guide.y_nn, net.guide.y0_nn, net.guide.y1_nn):
            predictor.requires_grad_(False)
    t = (torch.arange(6) % 2).to(torch.get_default_dtype())
    args = (torch.randn(6, 3), t, torch.bernoulli(0.3 + 0.4 * t))
    guide = poutine.block(net.guide, hide=["t", "y"]) if blocked else net.guide
    return Example(net.model, guide, args)


def scanvi(*, labelled: bool = False) -> Example:
    net = script("scanvi/scanvi.py").SCANVI(
        num_genes=6, num_labels=3, l_loc=2.0, l_scale=0.5, latent_dim=2, scale_factor=0.02
    )
    x = torch.poisson(torch.full((8, 6), 2.0))
    args = (x, labels(8, 3)) if labelled else (x,)
    return Example(net.model, net.guide, args)


def sparse_gamma_def(kind: str = "custom") -> Example:
    """kind: custom, auto or easy, the guides of the script."""
    module = script("sparse_gamma_def.py")
    net = module.SparseGammaDEF()
    net.top_width, net.mid_width, net.bottom_width, net.image_size = 4, 3, 2, 9
    for name in ("alpha_z", "beta_z", "alpha_w", "beta_w"):
        setattr(net, name, getattr(net, name).to(torch.get_default_dtype()))
    x = torch.poisson(torch.full((5, 9), 3.0))
    guides: dict[str, Callable[[], Any]] = {
        "custom": lambda: net.guide,
        "auto": lambda: AutoDiagonalNormal(net.model, init_loc_fn=init_to_feasible),
        "easy": lambda: module.MyEasyGuide(net.model),
    }
    return Example(net.model, guides[kind](), (x,))


EXAMPLES: dict[str, Callable[[], Example]] = {
    "vae": vae,
    "ss_vae": ss_vae,
    "ss_vae, broadcast": partial(ss_vae, "parallel"),
    "ss_vae, labelled": partial(ss_vae, labelled=True),
    "ss_vae, auxiliary": ss_vae_aux,
    "cvae": cvae,
    "dmm": dmm,
    "dmm, two IAFs": partial(dmm, 2),
    "dmm, annealed": partial(dmm, annealing=0.3),
    "air": air,
    "air, subsampled": partial(air, 3),
    "air, no masking": partial(air, masking=False, baselines=False),
    "cevae": partial(cevae, blocked=True),
    "cevae, with its predictors": cevae,
    "cevae, normal outcome": partial(cevae, "normal", blocked=True),
    "scanvi": scanvi,
    "scanvi, labelled": partial(scanvi, labelled=True),
    "sparse_gamma_def, custom": sparse_gamma_def,
    "sparse_gamma_def, auto": partial(sparse_gamma_def, "auto"),
    "sparse_gamma_def, easy": partial(sparse_gamma_def, "easy"),
}
"""Every program in every setting, by name."""
