"""Which connectors a sweep measures, and with which aggregated ones each is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import PlanError, needs
from workbench.params.pd_sweep import ALL_CONNECTORS, PdSweep
from workbench.serve.connectors import CONNECTORS, Connector, connector
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology


@dataclass(frozen=True, slots=True)
class Chosen:
    """The connectors of a sweep, and a sentence for each that `connector all` leaves out."""

    connectors: tuple[Connector, ...]
    left_out: tuple[str, ...] = ()

    def subjects(self, topology: Topology) -> list[str]:
        """Names of those that serve this topology. Raises PlanError if the only one does not."""
        if len(self.connectors) == 1:
            self.connectors[0].check(topology)
        return [one.name for one in self.connectors if not one.refuses(topology)]

    def rivals(self, equal: Topology) -> list[str]:
        """Names of the connectors of aggregated arms with as many GPUs as a PD topology."""
        if len(self.connectors) > 1:
            return ["none", *(n for n in self.subjects(equal) if n != "none")]
        return list(rivals_of(self.connectors[0]))


def rivals_of(subject: Connector) -> tuple[str, str]:
    """Connectors of the aggregated arms that a PD arm is compared with: its own, if it has a store
    that serves them, and none."""
    return "none", subject.name if subject.store else "lmcache"


def chosen(params: PdSweep, topologies: Sequence[Topology], settings: EngineSettings) -> Chosen:
    """The connectors that `connector` names; all that this machine has, if it is `all`.

    Raises PlanError if there is none.
    """
    simulated = params.engine == "simulated"
    if params.connector != ALL_CONNECTORS:
        asked = connector(params.connector)
        if simulated and not asked.simulated:
            modelled = ", ".join(name for name, known in CONNECTORS.items() if known.simulated)
            wanted = f"connector={modelled} or {ALL_CONNECTORS}"
            raise PlanError(needs("engine=simulated", wanted, asked.name, "lmcache"))
        if not simulated and asked.gpu_only and not settings.on_gpu:
            needed = f"platform=cuda or rocm, because {asked.gpu_only}"
            example = "-p connector lmcache"
            raise PlanError(needs(f"connector={asked.name}", needed, settings.platform, example))
        return Chosen((asked,))
    found, left_out = [], []
    for known in CONNECTORS.values():
        if simulated and not known.simulated:
            why = "engine=simulated does not model it"
        elif known.gpu_only and not settings.on_gpu:
            why = f"it needs a GPU, because {known.gpu_only}"
        elif not simulated and not known.installed(settings.interpreter):
            why = f"it is not installed ({known.install})"
        elif why := _refused(known, topologies, opponents=params.opponents):
            pass
        else:
            found.append(known)
            continue
        if known.name != "none":
            left_out.append(f"Connector {known.name} was left out: {why}.")
    if not found:
        raise PlanError(
            f"connector=all needs at least one that is installed and serves the topology."
            f" {' '.join(left_out)} (example: -p connector none -p topology 2a)"
        )
    return Chosen(tuple(found), tuple(left_out))


def _refused(known: Connector, topologies: Sequence[Topology], *, opponents: bool) -> str:
    """Why a connector has no arm; empty if it serves a topology or an aggregated opponent."""
    served = [topology for topology in topologies if not known.refuses(topology)]
    if served or (opponents and not known.refuses(Topology(aggregated=1))):
        return ""
    kind = "aggregated" if topologies[0].disaggregated else "PD"
    return f"it serves {kind} topologies only"
