"""Labels of entities behind a structure: how many ways there are to give it, and draws of one of them."""

import torch
from torch import Tensor

from pyro_nri.scenes import edges


class Labelings:
    """All labelings that give each of some structures, ``z_ij = table[label_i, label_j]``.

    Entities get their labels one after the other. Partial labelings that leave the same labels open to all entities
    still to come are one *state* with their number, so a table that hardly tells its labels apart makes many labelings
    but few states. Exact for every table.

    Args:
        table: long ``[L, L]``, row = label of the sender, column = label of the receiver.
        structure: long ``[*batch, E]``.
        edge_mask: bool ``[*batch, E]``; edges outside it tell nothing. An entity without an edge has label 0.

    Attributes:
        log_count: log number of labelings of the entities with an edge, float64 ``[*batch]``; -inf if there is none.
    """

    def __init__(self, table: Tensor, structure: Tensor, edge_mask: Tensor) -> None:
        device, num_labels = structure.device, len(table)
        table = table.to(device)
        self._batch = structure.shape[:-1]
        matrix = edges.to_matrix(structure.flatten(0, -2) if structure.ndim > 1 else structure[None])  # [R, N, N]
        free = ~edges.to_matrix(edge_mask.expand_as(structure).reshape(-1, structure.shape[-1]))
        free = free & free.mT
        num_structures, self._num_entities = matrix.shape[:2]
        # What two entities see of each other, as one number: types of the edges there and back.
        base = 1 + max(int(table.max()), int(matrix.max()) if matrix.numel() else 0)
        seen, wanted = matrix * base + matrix.mT, table * base + table.T  # [R, N, N], [L, L]
        tells_apart = all(len(row.unique()) == num_labels for row in wanted)

        owner = torch.arange(num_structures, device=device)  # of each state: its structure
        owner = owner[(matrix >= 0).all(-1).all(-1)]
        weight = torch.ones(len(owner), dtype=torch.float64, device=device)
        is_open = torch.ones((len(owner), self._num_entities, num_labels), dtype=torch.bool, device=device)
        is_open[..., 1:] &= ~free[owner].all(-1)[..., None]
        self._steps = []
        for entity in range(self._num_entities):
            parent, label = is_open[:, 0].nonzero(as_tuple=True)  # one child of a state for each label of the entity
            whose = owner[parent]
            later = slice(entity + 1, None)
            fits = (seen[whose, entity, later, None] == wanted[label][:, None]) | free[whose, entity, later, None]
            left = is_open[parent, 1:] & fits  # labels of the later entities, [children, later, L]
            alive = left.any(-1).all(-1)
            parent, label, whose, left = parent[alive], label[alive], whose[alive], left[alive]
            is_last = entity == self._num_entities - 1
            if is_last or not tells_apart:
                state = _number(whose, left.flatten(1))
                first = torch.empty_like(state[: int(state.max()) + 1 if len(state) else 0])
                first[state] = torch.arange(len(state), device=device)  # any child of each state
                owner, is_open = whose[first], left[first]
            else:  # two labelings that differ never leave the same open
                state = torch.arange(len(parent), device=device)
                owner, is_open = whose, left
            share = weight[parent]
            weight = share.new_zeros(len(owner)).index_add(0, state, share)
            self._steps.append((parent, label, state, share / weight[state]))
        self._owner = owner
        count = torch.zeros(num_structures, dtype=torch.float64, device=device).index_add(0, owner, weight)
        self.log_count = count.log().reshape(self._batch)

    def draw(self, uniform: Tensor) -> Tensor:
        """One labeling of each structure, all equally likely; label 0 throughout where there is none.

        Args:
            uniform: ``[*batch, N]`` in [0, 1).

        Returns:
            Labels, long ``[*batch, N]``.
        """
        uniform = uniform.reshape(-1, self._num_entities).double()
        labels = torch.zeros(uniform.shape, dtype=torch.long, device=self._owner.device)
        state = torch.arange(len(self._owner), device=self._owner.device)  # the last one of each structure
        for entity in range(self._num_entities - 1, -1, -1):
            parent, label, child_of, share = self._steps[entity]
            # The children of each state in a row of their own: what is drawn for one structure depends on no other.
            order = child_of.argsort(stable=True)
            number = child_of.bincount()  # of children
            first = number.cumsum(0) - number
            place = torch.arange(len(order), device=order.device) - first[child_of[order]]
            width = int(number.max()) if len(number) else 0
            cumulative = share.new_zeros((len(number), width)).index_put((child_of[order], place), share[order])
            cumulative = cumulative.cumsum(-1)[state]
            place = (cumulative <= uniform[self._owner, entity, None]).sum(-1).minimum(number[state] - 1)
            chosen = order[first[state] + place]
            labels[self._owner, entity] = label[chosen]
            state = parent[chosen]
        return labels.reshape(*self._batch, self._num_entities)


def _number(key: Tensor, flags: Tensor) -> Tensor:
    """Numbers that rows share if and only if they have the same key and flags, ascending with the key, long ``[R]``.

    Args:
        key: long ``[R]``, below 2^23.
        flags: bool ``[R, M]``.
    """
    key = key.unique(return_inverse=True)[1]
    for part in flags.split(40, dim=-1) if flags.shape[-1] else ():
        packed = (part.long() << torch.arange(part.shape[-1], device=part.device)).sum(-1)
        key = (key << 40 | packed).unique(return_inverse=True)[1]
    return key
