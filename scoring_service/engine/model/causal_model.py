"""A Hugging Face causal LM as the engine sees it: states of positions, and a head over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.attention.attention import ATTENTION_NAME
from scoring_service.engine.attention.packing import Packing
from scoring_service.engine.fused.modules import Fused, fuse_layers
from scoring_service.engine.head.head import RowHead, WholeLogits
from scoring_service.engine.head.tiles import ROW_MULTIPLE
from scoring_service.engine.model.rope import switching_lengths
from scoring_service.engine.weights.model_weights import ModelWeights, Slots
from scoring_service.kernels import dispatch
from scoring_service.kernels.cpu.body import CpuBody
from scoring_service.kernels.cpu.ops import CpuKernels


class CausalModel:
    """Runs the body of a model over one sequence, or over a packed step.

    The body is the model's own forward. A hook on the head keeps what enters it and lets no row
    through, so that the head costs nothing here and anything the model does before its head
    is in the states. With `WholeLogits` the states are the model's own logits.
    """

    def __init__(
        self,
        model: Any,
        head: RowHead,
        device: torch.device,
        weight_version: int = 0,
        kernels: CpuKernels | None = None,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        self.head = head
        self.device = device
        self.weight_version = weight_version
        self.kernels = kernels
        self.residual_dtype: torch.dtype = residual_dtype or model.dtype
        """Element type of what enters and leaves the layers of the body."""
        self.attends_by_triton = dispatch.attends_by_triton(device)
        """Whether one Triton kernel does the attention of a packed step."""
        self.row_multiple = ROW_MULTIPLE
        self.keeps_states = True
        """Whether a sample that runs plainly goes on from what the model keeps of its tokens."""
        self.weights: ModelWeights | None = None
        """What answers now; None until `keep_weights`."""
        self.slots: Slots | None = None
        self.fused = Fused()
        """What kernels do of the body; nothing until `fuse_layers`."""
        self._model = model
        self._own_attention: str | None = model.config._attn_implementation
        self._attention = self._own_attention
        self._switching_lengths = switching_lengths(model.config.get_text_config())
        self._kept: Any = None
        self._hook = None
        if not isinstance(head, WholeLogits):
            self._hook = model.get_output_embeddings().register_forward_pre_hook(self._keep)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the body."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def attention(self) -> str:
        """The attention that transformers chose for the model by itself."""
        return str(self._own_attention)

    def _keep(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._kept = inputs[0]
        return (inputs[0][:, :0], *inputs[1:])

    def _forward(self, ids: list[int], cache: Any, use_cache: bool) -> tuple[Tensor, Any]:
        if self._own_attention is not None:
            self.use_attention(self._own_attention)
        input_ids = torch.tensor([ids], dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            if cache is None:
                output = self._model(input_ids=input_ids, use_cache=use_cache)
            else:
                output = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return self._states(output), getattr(output, "past_key_values", None)

    def _states(self, output: Any) -> Tensor:
        if self._hook is None:
            states: Tensor = output.logits
        else:
            states, self._kept = self._kept, None
        return states[0]

    def states(self, ids: list[int]) -> Tensor:
        """State of every position of a sequence, [L, H] (or [L, V] with `WholeLogits`)."""
        return self._forward(ids, None, use_cache=False)[0]

    def last_state(self, ids: list[int], cache: Any = None) -> tuple[Tensor, Any]:
        """State of the last of `ids`, [1, H], and the cache that continues after it.

        The cache returned is None for a model that keeps none in the usual place, or none that it
        can go on from; such a model is continued by giving it the whole sequence again.
        """
        states, cache = self._forward(ids, cache, use_cache=self.keeps_states)
        # A copy, because a view would keep the states of the whole prompt.
        return states[-1:].clone(), cache

    def continued(self, ids: list[int], cache: Any) -> tuple[Tensor, Any]:
        """`last_state` of a sequence whose cache, if there is one, has all but its last token."""
        if cache is None or len(ids) in self._switching_lengths:
            return self.last_state(ids)
        return self.last_state(ids[-1:], cache)

    def fuse_layers(self) -> None:
        """Lets norms, activations and rotary positions use kernels, where they agree."""
        compiled = self.kernels
        body = dispatch.body_kernels(self.device) if compiled is None else CpuBody(compiled)
        if body is not None:
            self.fused = fuse_layers(self._model, body, self.residual_dtype)

    def keep_weights(self, digest: str, numerics_id: str, cache_key: bytes) -> None:
        """Names the weights that were loaded, once nothing changes in how they are used."""
        self.slots = Slots(self._model, self.head)
        self.weights = self.slots.own(
            self.head, self.weight_version, digest, numerics_id, cache_key
        )

    def use(self, weights: ModelWeights | None) -> None:
        """Lets these weights answer from now on; None leaves those that do."""
        if weights is not None and weights is not self.weights and self.slots is not None:
            self.slots.point_to(weights)
            self.head, self.weight_version, self.weights = weights.head, weights.version, weights

    def forget_weights(self) -> None:
        """Lets go of the weights that answer, and of the head that was made of them."""
        if self.slots is not None:
            self.slots.forget()
            self.head = self.slots.bare_head
        self.weights = None

    def use_attention(self, name: str) -> None:
        """Switches the model's attention to one registered with transformers.

        Raises:
            ValueError: the model does not take its attention from transformers' interface.
        """
        if self._attention != name:
            self._model.set_attn_implementation(name)
            self._attention = name

    def packed_states(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        packing: Packing,
        attention: str = ATTENTION_NAME,
    ) -> Tensor:
        """State of every row of a packed step, [T, H].

        Raises:
            ValueError: the model does not take its attention from transformers' interface.
        """
        self.use_attention(attention)
        with torch.inference_mode(), self.fused.in_a_step():
            output = self._model(
                input_ids=ids_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                packing=packing,
            )
        return self._states(output)
