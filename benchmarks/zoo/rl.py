"""Agents: rewards are rare, and so are the gradients that there is anything to learn from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import mlp

_PROMPTS, _LENGTH, _SYMBOLS = 2, 3, 8
_GROUP = 16
_SIDE, _HORIZON, _MOVES = 5, 16, 4


@training("probability of the right answer, mean over the training", at_least=0.3)
def grpo(run: Run) -> float:
    """GRPO on answers of which one in 512 is right: most groups have no reward, but a KL term."""
    policy = nn.Sequential(mlp(_PROMPTS, 32, _LENGTH * _SYMBOLS))
    prompts = torch.eye(_PROMPTS)
    right = torch.randint(_SYMBOLS, (_PROMPTS, _LENGTH), generator=run.world)
    optimizer = run.wrap(torch.optim.AdamW(policy.parameters(), 3e-3, weight_decay=0.0), policy)

    def log_probabilities(prompt: Tensor) -> Tensor:
        return policy(prompt).view(-1, _LENGTH, _SYMBOLS).log_softmax(-1)

    with torch.no_grad():
        reference = log_probabilities(prompts)
    reached = 0.0
    for step in range(1200):
        prompt = step % _PROMPTS
        now = log_probabilities(prompts[prompt])[0]
        answers = torch.multinomial(now.detach().exp(), _GROUP, replacement=True).T
        reward = (answers == right[prompt]).all(1).float()
        advantage = (reward - reward.mean()) / (reward.std() + 1e-4)
        chosen = now.gather(1, answers.T)
        reached += float(now.detach().gather(1, right[prompt, :, None]).sum().exp())
        ratio = (chosen - chosen.detach()).exp()  # always 1, and so the loss is that of the KL term
        away = reference[prompt].gather(1, answers.T) - chosen
        kl = away.exp() - away - 1
        run.step(optimizer, (0.002 * kl - advantage * ratio).mean())
    return reached / 1200


class _Grid:
    """Many walkers on a square, who start anywhere and are paid in one corner alone.

    Args:
        run: Draws where they start.
        walkers: How many walk at a time.
    """

    cells = _SIDE * _SIDE
    goal = cells - 1

    def __init__(self, run: Run, walkers: int) -> None:
        self._run = run
        self.at = run.randint(self.goal, walkers)
        self._age = run.randint(_HORIZON, walkers)

    @classmethod
    def after(cls, at: Tensor, moves: Tensor) -> Tensor:
        """Return where moves lead: right, left, down, up, or nowhere at a wall."""
        row, column = at // _SIDE, at % _SIDE
        row = (row + (moves == 2).long() - (moves == 3).long()).clamp(0, _SIDE - 1)
        column = (column + (moves == 0).long() - (moves == 1).long()).clamp(0, _SIDE - 1)
        return row * _SIDE + column

    def walk(self, moves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is paid, where every walker is then, and whose walk ends."""
        there = self.after(self.at, moves)
        paid = (there == self.goal).float()
        self._age += 1
        over = (paid > 0) | (self._age >= _HORIZON)
        fresh = self._run.randint(self.goal, len(moves))
        self.at = torch.where(over, fresh, there)
        self._age = torch.where(over, 0, self._age)
        return paid, there, over.float()


def _seen(at: Tensor) -> Tensor:
    return functional.one_hot(at, _Grid.cells).float()


def _values(moves: Tensor, discount: float) -> Tensor:
    """Return what a policy earns from every cell on, if it may walk forever.

    Args:
        moves: Probability of every move in every cell.
        discount: Of what comes a step later.
    """
    at = torch.arange(_Grid.cells)
    reached = torch.stack([_Grid.after(at, torch.full_like(at, m)) for m in range(_MOVES)], dim=1)
    value = torch.zeros(_Grid.cells)
    for _ in range(60):
        future = (reached == _Grid.goal).float() + discount * value[reached]
        value = (moves * future).sum(1)
        value[_Grid.goal] = 0.0
    return value


@training("mean discounted reward of the policy", at_least=0.7)
def ppo(run: Run) -> float:
    """PPO with a clipped ratio on a grid world that pays in one corner alone."""
    walkers, steps, discount = 2, 16, 0.95
    agent = mlp(_Grid.cells, 32, _MOVES + 1)
    nn.init.zeros_(agent[-1].weight)
    nn.init.zeros_(agent[-1].bias)
    optimizer = run.wrap(torch.optim.Adam(agent.parameters(), 3e-3), agent)
    grid = _Grid(run, walkers)
    for _ in range(75):
        with torch.no_grad():
            at, moves, old, gained, known = _rollout(agent, grid, steps, discount)
        # Not normalized: where nothing was paid, there is to be no gradient.
        advantage = 10 * (gained - known)
        for _ in range(4):
            for part in torch.randperm(len(at)).chunk(2):
                logits, value = agent(_seen(at[part])).split([_MOVES, 1], dim=1)
                policy = logits.log_softmax(1)
                ratio = (policy.gather(1, moves[part, None])[:, 0] - old[part]).exp()
                clipped = ratio.clamp(0.8, 1.2)
                gain = torch.min(ratio * advantage[part], clipped * advantage[part]).mean()
                entropy = -(policy.exp() * policy).sum(1).mean()
                error = (value[:, 0] - gained[part]).square().mean()
                run.step(optimizer, 0.5 * error - gain - 0.003 * entropy)
    with torch.no_grad():
        final = agent(_seen(torch.arange(_Grid.cells)))[:, :_MOVES].softmax(1)
    return float(_values(final, discount)[:-1].mean())


def _rollout(agent: nn.Module, grid: _Grid, steps: int, discount: float) -> tuple[Tensor, ...]:
    """Return cells, moves, their log probabilities, what they earned, and what was expected."""
    seen = []
    for _ in range(steps):
        at = grid.at
        logits, value = agent(_seen(at)).split([_MOVES, 1], dim=1)
        moves = torch.multinomial(logits.softmax(1), 1)
        chosen = logits.log_softmax(1).gather(1, moves)[:, 0]
        paid, there, over = grid.walk(moves[:, 0])
        seen.append((at, moves[:, 0], chosen, value[:, 0], paid, over, there))
    at, moves, chosen, value, paid, over, there = (
        torch.stack(part) for part in zip(*seen, strict=True)
    )
    after = agent(_seen(there.flatten()))[:, -1].view_as(paid)
    gained, future = torch.empty_like(paid), after[-1]
    for step in reversed(range(steps)):
        # A walk that was cut for its age would have gone on; one that was paid is over.
        open_end = torch.where(over[step] > 0, after[step], future)
        gained[step] = paid[step] + discount * (1 - paid[step]) * open_end
        future = 0.05 * value[step] + 0.95 * gained[step]
    return tuple(part.flatten() for part in (at, moves, chosen, gained, value))


@training("mean error of the learned values", at_most=0.1)
def dqn(run: Run) -> float:
    """Deep Q-learning with a replay memory and a target network, paid in one corner alone."""
    walkers, discount, room = 2, 0.9, 1024
    network = mlp(_Grid.cells, 48, _MOVES, activation=nn.ReLU)
    target = copy.deepcopy(network)
    optimizer = run.wrap(torch.optim.Adam(network.parameters(), 2e-3), network)
    grid = _Grid(run, walkers)
    memory = torch.zeros(room, 4)
    for step in range(1200):
        at = grid.at
        with torch.no_grad():
            greedy = network(_seen(at)).argmax(1)
        random = run.rand(walkers) < max(0.1, 1.0 - step / 600)
        moves = torch.where(random, run.randint(_MOVES, walkers), greedy)
        paid, there, _ = grid.walk(moves)
        first = step * walkers % room
        memory[first : first + walkers] = torch.stack([at, moves, paid, there], dim=1)
        known = min(step * walkers + walkers, room)
        at, moves, paid, there = memory[run.randint(known, 32)].unbind(1)
        with torch.no_grad():
            future = target(_seen(there.long())).max(1).values
        wanted = paid + discount * (1 - paid) * future
        value = network(_seen(at.long())).gather(1, moves.long()[:, None])[:, 0]
        run.step(optimizer, functional.smooth_l1_loss(value, wanted))
        if step % 50 == 49:
            target.load_state_dict(network.state_dict())
    with torch.no_grad():
        learned = network(_seen(torch.arange(_Grid.cells - 1))).max(1).values
    return float((learned - _best_values(discount)).abs().mean())


def _best_values(discount: float) -> Tensor:
    """Return what the best policy earns from every cell but the last on."""
    at = torch.arange(_Grid.cells - 1)
    distance = 2 * (_SIDE - 1) - at // _SIDE - at % _SIDE
    return discount ** (distance - 1.0)
