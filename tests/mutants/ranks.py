"""Mutants of what several ranks do together."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EXACT = "tests/ranks/test_exact.py"
EDGES = "tests/ranks/test_edges.py"
MESSAGE = "tests/ranks/test_message.py"
REPLICAS = "tests/ranks/test_replicas.py"
DDP = f"{EXACT}::test_ddp"
FSDP = f"{EXACT}::test_fsdp2"

RANKS_MUTANTS = {
    "a rank hears of its own trouble alone": Mutant(
        "stableopt.ranks.message",
        "flags = frozenset(name for name in FLAGS if next(numbers) > 0)",
        "flags = frozenset(name for name in FLAGS if next(numbers) > 1)",
        (f"{MESSAGE}::test_what_ranks_agree_on",),
    ),
    "ranks that are out of step go on": Mutant(
        "stableopt.ranks.message",
        "in_step=size * clock2 == clock**2,",
        "in_step=True,",
        (f"{EDGES}::test_other_checkpoints_are_out_of_step",),
    ),
    "a NaN of one rank is left out of the sum": Mutant(
        "stableopt.ranks.message",
        "return [0.0, 0.0] if value is None else [value, 1.0]",
        "return [0.0, 0.0] if value is None or value != value else [value, 1.0]",
        (f"{MESSAGE}::test_a_loss_that_is_not_finite_reaches_everybody",),
    ),
    "every rank of a replica counts": Mutant(
        "stableopt.loop.agree",
        '"square": norms.total_value**2 / copies',
        '"square": norms.total_value**2',
        (f"{EXACT}::test_norms",),
    ),
    "each rank learns its own loss": Mutant(
        "stableopt.loop.agree",
        "known = Observation(loss=agreed.loss,",
        "known = Observation(loss=observation.loss,",
        (f"{EXACT}::test_norms",),
    ),
    "each rank has words of its own": Mutant(
        "stableopt.loop.agree",
        'everybody = self.ranks.gather(mine, "the exchange of what was found")',
        "everybody = [mine] * self.ranks.size",
        (DDP,),
    ),
    "replicas are not compared before a snapshot": Mutant(
        "stableopt.snapshots.keeper",
        "parted = self._replicas.parts()",
        "parted = False",
        (DDP,),
    ),
    "a snapshot that failed on one rank is kept by all others": Mutant(
        "stableopt.snapshots.keeper",
        'sound = not self._ranks.any(not sound, "a snapshot")',
        "pass",
        (f"{EDGES}::test_a_snapshot_that_fails_on_one_rank_is_none",),
    ),
    "a damaged snapshot is restored by all others": Mutant(
        "stableopt.snapshots.keeper",
        'if self._ranks.any(not intact, "the check of a snapshot"):',
        "if not intact:",
        (f"{EDGES}::test_a_snapshot_that_is_damaged_on_one_rank_is_given_up",),
    ),
    "a request stays with its rank": Mutant(
        "stableopt.loop.decide",
        '"manual": self.manual is not None,',
        '"manual": False,',
        (f"{EDGES}::test_a_request_of_one_rank_is_one_of_all",),
    ),
    "every rank measures everything": Mutant(
        "stableopt.health.spectra.sharing",
        "return holders[self._turns[name] % len(holders)] == self._ranks.rank",
        "return True",
        (f"{EDGES}::test_visits_are_shared",),
    ),
    "a local part is copied as a whole": Mutant(
        "stableopt.snapshots.state_copy",
        "data = [local(p.detach()) for p in params]",
        "data = [p.detach() for p in params]",
        (FSDP,),
    ),
    "parts of moments are not looked at": Mutant(
        "stableopt.health.tensors.inspection",
        "        state = local(state)\n",
        "",
        (FSDP,),
    ),
    "parts of weights are not looked at": Mutant(
        "stableopt.health.tensors.scan",
        "value = local(parameter)",
        "value = parameter",
        (FSDP,),
    ),
    "gradients are measured through their wrappers": Mutant(
        "stableopt.sensors.gradients",
        "values.append(dense_values(local(gradient)))",
        "values.append(dense_values(gradient))",
        (f"{EXACT}::test_norms", "-k", "fsdp2"),
    ),
    "what nobody shares is compared all the same": Mutant(
        "stableopt.ranks.replicas",
        "self._alone = all(len(by_rank) < 2 for by_rank in held.values())",
        "self._alone = False",
        (FSDP,),
    ),
    "weights that train apart are rolled back": Mutant(
        "stableopt.ranks.replicas",
        "if len(apart) > max(1, len({copy.name for copy in shared}) / 2):",
        "if False:",
        (f"{REPLICAS}::test_most_weights_at_once_are_trained_apart",),
    ),
    "what never was a copy is one": Mutant(
        "stableopt.ranks.replicas",
        "elif copy in self._changed:",
        "elif copy in self._known:",
        (f"{REPLICAS}::test_what_never_changed_alike_is_no_copy",),
    ),
    "gathered weights survive a rollback": Mutant(
        "stableopt.loop.restore",
        "                reshard(self._model)\n",
        "",
        (f"{EXACT}::test_gathered_weights_are_not_those_of_before",),
    ),
}
