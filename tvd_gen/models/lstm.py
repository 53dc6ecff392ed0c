"""An LSTM encoder-decoder with attention and input feeding: fairseq's `lstm`, as a transformers
model.

    model: {architecture: {model_type: lstm_seq2seq, embedding_size: 128, hidden_size: 128}}

With x_t the embedded token, f the last output (0 at first), H the encoder's outputs:

    h_t, c_t = LSTM([x_t; f], h_{t-1}, c_{t-1})         from the encoder's last states
    a_t = softmax(H U h_t)                               over the source, padding left out
    f = o_t = dropout(tanh(W [H^T a_t; h_t]))            logits = head(o_t)

All that does not hang on the step before, the embeddings' part of the gates and the source's part
of the attention, is computed for all steps at once.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

IGNORE = -100
CACHE = "cache" if "cache" in {each.name for each in fields(Seq2SeqLMOutput)} else "past_key_values"
"""transformers' name for what decoding goes on from: `cache` from 5.24 on"""
UNREAD = {"return_dict": True, "decoder_attention_mask": None}
"""Arguments that need not be read, with the one value they may have (None: any; a target's padding
is on its right, where nothing looks back from). All others may be None or False."""


def _refuse_unread(arguments: dict[str, Any]) -> None:
    """TypeError for what is asked for and would have no effect."""
    for name, value in arguments.items():
        allowed = UNREAD.get(name, False)
        if value is not None and allowed is not None and value is not allowed:
            raise TypeError(f"lstm_seq2seq: has no argument {name}, or not that value of it")


@strict
class LSTMSeq2SeqConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # its subclass hook
    """Sizes of an LSTM encoder-decoder; both sides have `num_hidden_layers` layers."""

    model_type = "lstm_seq2seq"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [CACHE]

    vocab_size: int = 32000
    embedding_size: int = 512
    hidden_size: int = 512
    num_hidden_layers: int = 1
    dropout: float = 0.1
    init_range: float = 0.1
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False


@dataclass
class Source(ModelOutput):
    """What the encoder makes of the sources, rows first."""

    last_hidden_state: Tensor | None = None
    """(B, S, H)"""
    hidden: Tensor | None = None
    """(B, layers, H) after each source's last token"""
    cell: Tensor | None = None
    """(B, layers, H)"""


class State:
    """All that decoding goes on from: the recurrent states, and the source's part of the attention.

    transformers' generation takes it for its cache.
    """

    is_compileable = False

    def __init__(self, keys: Tensor, values: Tensor, hidden: Tensor, cell: Tensor, mask: Tensor):
        self.keys, self.values = keys, values  # (B, S, H): H U, and H times W's half
        self.mask = mask  # (B, S) 0, or -inf at padding
        self.hidden, self.cell = hidden, cell  # (B, layers, H)
        self.feed = torch.zeros_like(hidden[:, 0])  # (B, H)
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens have been read."""
        return self.length

    def reorder_cache(self, rows: Tensor) -> None:
        """Go on from these rows of the batch, some of them several times, others not at all."""
        for name in ("keys", "values", "mask", "hidden", "cell", "feed"):
            setattr(self, name, getattr(self, name).index_select(0, rows))


class Encoder(nn.Module):
    """Source ids to outputs and last states; what stands behind a source's end changes nothing."""

    main_input_name = "input_ids"

    def __init__(self, config: LSTMSeq2SeqConfig):
        super().__init__()
        self.dropout = config.dropout
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.embedding_size, config.pad_token_id
        )
        layers = config.num_hidden_layers
        self.lstm = nn.LSTM(
            config.embedding_size,
            config.hidden_size,
            layers,
            batch_first=True,
            dropout=config.dropout if layers > 1 else 0.0,
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any
    ) -> Source:
        """(B, S) ids, padded on the right; attention_mask (B, S) 1 and 0."""
        _refuse_unread(more)
        x = F.dropout(self.embed_tokens(input_ids), self.dropout, self.training)
        if attention_mask is None:
            outputs, (hidden, cell) = self.lstm(x)
        else:
            lengths = attention_mask.sum(1).cpu()
            if not lengths.all():
                raise ValueError("lstm_seq2seq: a source of the batch has no tokens")
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            read, (hidden, cell) = self.lstm(packed)
            outputs = pad_packed_sequence(read, batch_first=True, total_length=x.shape[1])[0]
        outputs = F.dropout(outputs, self.dropout, self.training)
        return Source(outputs, hidden.transpose(0, 1), cell.transpose(0, 1))


class Decoder(nn.Module):
    """Target ids to outputs, step by step; the module's docstring has the formulae."""

    def __init__(self, config: LSTMSeq2SeqConfig):
        super().__init__()
        width, embedding = config.hidden_size, config.embedding_size
        self.dropout, self.embedding_size = config.dropout, embedding
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding, config.pad_token_id)
        inputs = [embedding + width, *[width] * (config.num_hidden_layers - 1)]
        self.cells = nn.ModuleList(nn.LSTMCell(size, width) for size in inputs)
        # no nn.Linear: an adapter on one would be passed over
        self.attention_in = nn.Parameter(torch.empty(width, width))
        self.attention_out = nn.Parameter(torch.empty(width, 2 * width))

    def start(self, source: Source, attention_mask: Tensor | None) -> State:
        """The state before the first token."""
        outputs, hidden, cell = source.to_tuple()
        mask = outputs.new_zeros(outputs.shape[:2])
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask == 0, -torch.inf)
        width = outputs.shape[-1]
        keys = outputs @ self.attention_in
        values = F.linear(outputs, self.attention_out[:, :width])
        return State(keys, values, hidden, cell, mask)

    def forward(self, input_ids: Tensor, state: State) -> Tensor:
        """(B, T) ids -> (B, T, H) outputs; the state goes on by T tokens."""
        first: Any = self.cells[0]
        split = self.embedding_size
        x = F.dropout(self.embed_tokens(input_ids), self.dropout, self.training)
        # time first: a step's rows lie side by side
        gates = F.linear(
            x.transpose(0, 1), first.weight_ih[:, :split], first.bias_ih + first.bias_hh
        )
        recurrent = torch.cat([first.weight_ih[:, split:], first.weight_hh], 1).t()
        query = self.attention_out[:, state.values.shape[-1] :].t()
        kept = self._kept(len(gates) * len(self.cells), state.feed)
        hidden, cell = list(state.hidden.unbind(1)), list(state.cell.unbind(1))
        feed, outputs = state.feed, []
        for step, part in enumerate(gates.unbind(0)):
            all_gates = torch.addmm(part, torch.cat([feed, hidden[0]], 1), recurrent)
            hidden[0], cell[0] = _gated(all_gates, cell[0])
            for i, layer in enumerate(self.cells[1:], start=1):
                below = _dropped(hidden[i - 1], kept, step * len(self.cells) + i)
                hidden[i], cell[i] = layer(below, (hidden[i], cell[i]))
            read = _attend(hidden[-1], state)
            out = torch.addmm(read, hidden[-1], query).tanh()
            feed = _dropped(out, kept, step * len(self.cells))
            outputs.append(feed)
        state.hidden, state.cell = torch.stack(hidden, 1), torch.stack(cell, 1)
        state.feed, state.length = feed, state.length + len(outputs)
        return torch.stack(outputs, 1)

    def _kept(self, count: int, like: Tensor) -> Tensor | None:
        """(count, B, H) factors of dropout, drawn at once; None where nothing is dropped."""
        if not self.training or not self.dropout:
            return None
        return F.dropout(like.new_ones(count, *like.shape), self.dropout)


def _dropped(x: Tensor, kept: Tensor | None, at: int) -> Tensor:
    return x if kept is None else x * kept[at]


def _gated(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 4H) sums into the gates, in torch's order, and (B, H) cells -> hidden and cells."""
    i, f, g, o = gates.chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _attend(hidden: Tensor, state: State) -> Tensor:
    """(B, H) -> (B, H): the values under the softmax of the keys' products with `hidden`."""
    scores = (state.keys * hidden.unsqueeze(1)).sum(2) + state.mask
    weights = scores.softmax(1)
    return (state.values * weights.unsqueeze(2)).sum(1)


class LSTMForSeq2SeqLM(PreTrainedModel, GenerationMixin):
    """The encoder-decoder with its head.

    Generation keeps a State in place of transformers' cache. Every weight and bias starts uniform
    in +-init_range, a padding row at 0, as in fairseq.
    """

    config_class = LSTMSeq2SeqConfig
    config: LSTMSeq2SeqConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: LSTMSeq2SeqConfig):
        super().__init__(config)
        if config.tie_word_embeddings:
            raise ValueError("lstm_seq2seq: has no shared embeddings (tie_word_embeddings: false)")
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        bound = self.config.init_range
        for parameter in module.parameters(recurse=False):
            initialization.uniform_(parameter, -bound, bound)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            initialization.zeros_(module.weight[module.padding_idx])

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's; the encoder has its own."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embedding."""
        self.decoder.embed_tokens = value  # type: ignore[assignment]

    def _resize_token_embeddings(self, *sizes: Any, **more: Any) -> nn.Module:
        self.encoder.embed_tokens = self._get_resized_embeddings(
            self.encoder.embed_tokens, *sizes, **more
        )
        decoders: nn.Module = super()._resize_token_embeddings(  # type: ignore[no-untyped-call]
            *sizes, **more
        )
        return decoders

    def get_output_embeddings(self) -> nn.Linear:
        """The head: logits = outputs @ weight.T + bias, and nothing after it."""
        head: nn.Linear = self.lm_head
        return head

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """(B, T) labels -> what is read before each: the start token, then the labels."""
        ids: Any = self.config  # load_model has set both
        shifted = F.pad(labels[:, :-1], (1, 0), value=ids.decoder_start_token_id)
        return shifted.masked_fill(shifted == IGNORE, ids.pad_token_id)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes the State

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Source | None = None,
        past_key_values: State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: State | None = None,
        num_items_in_batch: Tensor | None = None,
        **more: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, V) of the tokens that follow `decoder_input_ids` (B, T).

        Goes on from `cache` (or `past_key_values`, its older name), a State that it changes, where
        one is given; the source is not looked at then. `labels` (B, T) give `loss`, the sum of
        -log p over num_items_in_batch, or over the labels' own number. TypeError for an argument
        that asks for something else.
        """
        _refuse_unread(more)
        if cache is not None and past_key_values is not None:
            raise TypeError("lstm_seq2seq: give cache or past_key_values, not both")
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("lstm_seq2seq: give decoder_input_ids or labels")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        state = past_key_values if cache is None else cache
        if state is None:
            if encoder_outputs is None:
                encoder_outputs = self.encoder(input_ids, attention_mask)
            state = self.decoder.start(encoder_outputs, attention_mask)
        logits = self.lm_head(self.decoder(decoder_input_ids, state))
        loss = None
        if labels is not None:
            rows, targets = logits.flatten(0, 1).float(), labels.flatten()
            loss = fixed_cross_entropy(rows, targets, num_items_in_batch, IGNORE)
        kept: Any = state if use_cache else None  # annotated as transformers' own cache
        last = encoder_outputs.last_hidden_state if encoder_outputs is not None else None
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, encoder_last_hidden_state=last, **{CACHE: kept}
        )


AutoConfig.register(LSTMSeq2SeqConfig.model_type, LSTMSeq2SeqConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(LSTMSeq2SeqConfig, LSTMForSeq2SeqLM, exist_ok=True)
