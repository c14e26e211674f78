"""The sensors of ASSR as its authors wrote them, but for the type annotations and layout."""

from __future__ import annotations

import torch


def compute_fiedler_value(W):
    if W.dim() > 2:
        return 1.0

    with torch.no_grad():
        if W.shape[0] > W.shape[1]:  # noqa: SIM108
            G = torch.mm(W.t(), W)
        else:
            G = torch.mm(W, W.t())

        # Laplacian L = D - G
        D = torch.diag(torch.sum(torch.abs(G), dim=1))
        L = D - G

        try:
            # Use eigvalsh for fast, stable symmetric decomposition
            eigvals = torch.linalg.eigvalsh(L)
            if len(eigvals) > 1:
                # The Fiedler value is the second smallest eigenvalue
                return max(1e-9, eigvals[1].item())
        except:  # noqa: E722
            return 1.0

    return 1.0


def compute_condition_number(W):
    with torch.no_grad():
        try:
            s = torch.linalg.svdvals(W)
            s_min = s[-1].item()
            s_max = s[0].item()
            # Return high value if rank is effectively zero
            return s_max / s_min if s_min > 1e-10 else float("inf")
        except:  # noqa: E722
            return float("inf")
