import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from prosam_jax.config import TrainConfig
from prosam_jax.training import state

IMAGES = 7


@pytest.mark.parametrize("kind", ["warm_restarts", "cosine"])
def test_schedule_is_torchs(kind):
    cfg = TrainConfig(schedule=kind, epochs=5, restart_epochs=2, learning_rate=0.3)
    steps = state.steps_per_epoch(cfg, IMAGES)
    assert steps == 4
    assert state.total_steps(cfg, IMAGES) == 20
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = (
        torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2 * steps)
        if kind == "warm_restarts"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5 * steps)
    )
    rate = state.schedule(cfg, IMAGES)
    for i in range(20):
        np.testing.assert_allclose(rate(i), oracle.get_last_lr()[0], rtol=1e-5, atol=1e-7)
        optimizer.step()
        oracle.step()


def test_steps_replace_epochs():
    assert state.total_steps(TrainConfig(steps=9, epochs=5), IMAGES) == 9


def test_adamw_is_torchs():
    cfg = TrainConfig(learning_rate=0.05, weight_decay=0.1, schedule="cosine", steps=30)
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 5)).astype(np.float32)
    gradients = rng.standard_normal((20, 3, 5)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    oracle = torch.optim.AdamW([parameter], lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(oracle, 30)
    tx = state.optimizer(cfg, state.schedule(cfg, IMAGES))
    x = jnp.asarray(start)
    opt_state = tx.init(x)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        oracle.step()
        schedule.step()
        updates, opt_state = tx.update(jnp.asarray(gradient), opt_state, x)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, parameter.detach(), rtol=1e-4, atol=1e-5)
