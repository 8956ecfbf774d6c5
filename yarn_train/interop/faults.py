"""Named faults of a config.json's rope, and what is legal but read differently. Each check looks at one thing only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import tables
from .finding import NOTE, Finding
from .given import GEMMA3, MIXED, Given
from .transformers5 import FULL

SHARED = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
ORIGINAL = "original_max_position_embeddings"
YARN = {"factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
LONGROPE = {"factor", ORIGINAL, "short_factor", "long_factor", "attention_factor", "short_mscale", "long_mscale"}
KEYS = {
    "default": {"mrope_section"},
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", ORIGINAL},
    "yarn": YARN | {"attn_factor", "llama_4_scaling_beta", "mrope_section"},  # attn_factor has a fault of its own
    "longrope": LONGROPE,
    "su": LONGROPE,
    "llama3": {"factor", ORIGINAL, "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}
ONLY_IN_ONE = SHARED | {"short_mscale", "long_mscale"}  # the two spellings need not both have these


def faults_of(given: Given) -> list[Finding]:
    """Every finding, faults before notes."""
    found = [finding for check in SPELLING for finding in check(given)]
    for name, params in _dicts(given).items():
        kind = str(params.get("rope_type") or params.get("type") or "default")
        kind = "longrope" if kind == "su" else kind
        where = "" if name == "all" else f" of {name}"
        found += [f for check in CONTENT for f in check(given, params, kind, where)]
    found += list(tokenizer_too_short(given))
    return sorted(found, key=lambda finding: finding.level == NOTE)


def _dicts(given: Given) -> dict[str, dict[str, Any]]:
    chosen = given.scaling or given.parameters
    nested = {name: dict(params) for name, params in chosen.items() if isinstance(params, Mapping)}
    return nested or {"all": chosen}


def theta_spelling(given: Given) -> Iterator[Finding]:
    """theta has to stand where each reader looks."""
    inner, top = given.parameters.get("rope_theta"), given.top_theta
    nested = any(isinstance(value, Mapping) for value in given.parameters.values())
    if nested or (given.model_type in GEMMA3 and top is not None):
        return
    if inner is None and top is None:
        if given.scaling.get("rope_theta") is None and not given.part:
            meant = f"a base; readers take {given.default_theta:g}"
            yield Finding("theta_missing", "no rope_theta", meant, "write rope_theta")
    elif given.parameters and inner is None:
        fix = "copy rope_theta into rope_parameters"
        yield Finding("theta_only_at_top_level", f"rope_theta {top}", "in rope_parameters as well", fix)
    elif top is None and inner != given.default_theta:
        meant = f"at the top level as well: transformers 4 takes {given.default_theta:g}"
        yield Finding("theta_only_in_rope_parameters", f"rope_theta {inner}", meant, "copy rope_theta to the top level")
    elif inner is not None and top is not None and inner != top:
        meant = "one base"
        yield Finding("theta_disagrees", f"{inner} in rope_parameters, {top} at the top level", meant, "keep one")


def spelling(given: Given) -> Iterator[Finding]:
    """Both rope dicts, or the older one: a scaling that only the newer one names is not seen by all."""
    new, old = given.parameters, given.scaling
    scaled = _kind(new) != "default" or any(isinstance(value, Mapping) for value in new.values())
    if scaled and not old:
        fix = "copy rope_parameters into rope_scaling"
        yield Finding("scaling_only_in_rope_parameters", "no rope_scaling", "transformers 4 sees no scaling", fix)
    if isinstance(new.get(FULL), Mapping) and not any(isinstance(value, Mapping) for value in old.values()):
        new = new[FULL]  # the older spelling has one dict, and it is meant for the layers that see everything
    if new and old and (differ := _differences(new, old)):
        got = "; ".join(f"{key}: {new.get(key)!r} and {old.get(key)!r}" for key in differ)[:300]
        meant = "the same in rope_parameters and rope_scaling; transformers 5 takes rope_scaling"
        yield Finding("rope_dicts_disagree", got, meant, "make them equal")


def _kind(params: Mapping[str, Any]) -> str:
    return str(params.get("rope_type") or params.get("type") or "default")


def _differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    keys = (set(new) | set(old)) - ONLY_IN_ONE
    found = sorted(key for key in keys if new.get(key) != old.get(key))
    return ["rope_type", *found] if _kind(new) != _kind(old) else found


def types(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """The two names of the type."""
    new, old = params.get("rope_type"), params.get("type")
    if params and new is None and old is not None:
        got, fix = f"type {old!r}{where} without rope_type", f"write rope_type {old!r} too"
        if given.model_type in MIXED:  # its dict has a rope_type already, default, when this one is put into it
            yield Finding("type_only", got, "rope_type: transformers 5 sees no scaling here", fix)
        else:
            yield Finding("type_only", got, "rope_type since transformers 4.43; all read the older name too", fix, NOTE)
    elif new is not None and old is not None and old != new and (old, new) != ("su", "longrope"):
        meant = "one type: vLLM refuses, transformers 4 takes type, transformers 5 rope_type"
        yield Finding("types_contradict", f"rope_type {new!r}, type {old!r}{where}", meant, "make them equal")
    elif params and new is None and (set(params) - SHARED):
        yield Finding("type_missing", f"no rope_type{where}", "a type", "write rope_type")
    if kind not in KEYS:
        yield Finding("type_unknown", f"rope_type {kind!r}{where}", f"one of {', '.join(KEYS)}", "correct it")


def unknown_keys(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """Keys that nobody reads; transformers warns, the rest is silent."""
    known = KEYS.get(kind)
    if known is None or (kind == "default" and not params.get("rope_type") and not params.get("type")):
        return
    if kind == "yarn" and "finetuned" in params:
        meant = "a remark of the first YaRN models' own code, which nothing else reads"
        yield Finding("finetuned", f"finetuned: {params['finetuned']!r}{where}", meant, "leave it, or remove it", NOTE)
    for key in sorted(set(params) - known - SHARED - {"finetuned"}):
        near = difflib.get_close_matches(key, sorted(known | SHARED), 1, 0.7)
        meant = f"perhaps {near[0]}" if near else f"a key of {kind}"
        yield Finding("unknown_key", f"{key}: {params[key]!r}{where}", meant, "correct or remove it")


def factor(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """A number of at least 1."""
    value = params.get("factor")
    if value is None:
        if kind in ("linear", "dynamic", "yarn", "llama3"):
            meant = "max_position_embeddings / original length"
            yield Finding("factor_missing", f"no factor{where}", meant, "write factor")
    elif _number(value) is None:
        yield Finding("factor_not_a_number", f"factor {value!r}{where}", "a number", "write it without quotes")
    elif value < 1:
        yield Finding(
            "factor_below_one", f"factor {value}{where}", "extended / original length, at least 1", "invert it"
        )


def lengths(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """Longest length = factor x original length, of the types that name an original one."""
    if kind not in ("yarn", "longrope", "llama3"):
        return
    top = given.config.get(ORIGINAL)
    original, scale, longest = (
        params.get(ORIGINAL) if top is None else top,
        _number(params.get("factor")),
        given.max_length,
    )
    if original is None:
        guess = f": probably {longest / scale:g}" if longest and scale and kind == "yarn" else ""
        meant = "the pretraining length; transformers and vLLM fill in the extended one"
        yield Finding("original_length_missing", f"no {ORIGINAL}{where}", meant, f"write it{guess}")
    elif kind != "llama3" and scale and scale > 1 and _number(original) and longest:
        yield from _ratio(given, float(original), scale, longest)


def _ratio(given: Given, original: float, scale: float, longest: int) -> Iterator[Finding]:
    got = f"max_position_embeddings {longest}, original {original:g}, factor {scale:g}"
    whole, other = scale * original, longest / original
    if longest - whole >= 1:
        meant = f"max_position_embeddings {whole:g}: factors have been stacked, or one was not updated"
        fix = f"factor {other:g} if the model reaches {longest}: it is absolute, from the pretraining length"
        yield Finding("factor_stacked", got, meant, fix)
    elif whole - longest < 1:
        return
    elif (given.tokenizer_length or 0) >= whole - 1:
        fix = f"set max_position_embeddings to {round(whole)}"
        meant = f"{whole:g} = factor x original, as the tokenizer says: readers cut off at {longest}"
        yield Finding("max_length_left_behind", got, meant, fix)
    elif longest == original:
        meant = "either is wrong: the longest length is still the original one, or the original was set to the longest"
        fix = f"original {original / scale:g} if the model reaches {longest}, else max_position_embeddings {whole:g}"
        yield Finding("original_equals_max", got, meant, fix)
    else:
        meant = f"{whole:g} = factor x original: the longest length was left behind, or factors have been stacked"
        fix = f"max_position_embeddings {whole:g} if the model was trained with factor {scale:g}, else factor {other:g}"
        yield Finding("factor_stacked", got, meant, fix)


def betas(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """beta_fast counts more rotations than beta_slow."""
    fast, slow = (_number(params.get(key)) or default for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if kind == "yarn" and fast <= slow:
        yield Finding("betas_swapped", f"beta_fast {fast:g}, beta_slow {slow:g}{where}", "beta_fast above", "swap them")


def magnitude(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """What multiplies cos and sin."""
    scale, stated = _number(params.get("factor")), _number(params.get("attention_factor"))
    if kind != "yarn" or not scale or scale <= 1:
        return
    rule = tables.mscale(scale)
    if stated is not None and math.isclose(stated, rule, rel_tol=1e-6):
        meant = "the rule's own value: harmless where it replaces the rule, squared where it multiplies it"
        yield Finding("attention_factor_is_default", f"attention_factor {stated:g}{where}", meant, "remove it")
    elif stated is not None and math.isclose(stated, rule**2, rel_tol=1e-3):
        meant = f"{rule:g}: this is its square, and it multiplies cos AND sin"
        yield Finding("attention_factor_squared", f"attention_factor {stated:g}{where}", meant, "remove it")
    if params.get("attn_factor") is not None:
        meant = "attention_factor (final) is the key of transformers; SGLang and older vLLM multiply their rule by this"
        fix = "remove it, or write attention_factor"
        yield Finding("attn_factor", f"attn_factor {params['attn_factor']}{where}", meant, fix)
    over, under = _number(params.get("mscale")), _number(params.get("mscale_all_dim"))
    if over and under and over == under and stated is None and _latent(given):
        meant = (
            "they cancel in cos and sin; this attention multiplies its softmax scale by the square of mscale instead"
        )
        yield Finding("mscale_in_softmax", f"mscale = mscale_all_dim = {over:g}{where}", meant, "leave both", NOTE)
    elif over and under and over == under and stated is None:
        meant = f"they cancel: no temperature, 1 instead of {rule:g}; some readers ignore them and take {rule:g}"
        fix = "remove both, or write attention_factor 1.0 if the model was trained without temperature"
        yield Finding("mscale_cancels", f"mscale = mscale_all_dim = {over:g}{where}", meant, fix)


def _latent(given: Given) -> bool:
    """DeepSeek's attention, whose own code applies YaRN's temperature."""
    return "qk_rope_head_dim" in given.config or given.model_type.startswith("deepseek")


def divisors(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """One divisor per rotated pair."""
    share = params.get("partial_rotary_factor", given.top_share)
    pairs = int(given.head_dim * (_number(share) or 1.0)) // 2
    for key in ("short_factor", "long_factor") if kind == "longrope" else ():
        found = params.get(key)
        count = len(found) if isinstance(found, list) else None
        if count != pairs:
            got = f"{key}{where} has {'no list' if count is None else count}"
            yield Finding("longrope_list_length", got, f"{pairs} numbers, one per rotated pair", "correct the list")


def readings(given: Given, params: Mapping[str, Any], kind: str, where: str) -> Iterator[Finding]:
    """Legal, and not read by all."""
    if kind == "yarn" and params.get("truncate") is False:
        meant = "llama.cpp and TensorRT-LLM always round the ends of the ramp"
        yield Finding(
            "truncate_false", f"truncate false{where}", meant, "serve with the others, or train with true", NOTE
        )
    if kind == "longrope" and given.model_type != "phi3":
        meant = "llama.cpp writes these factors for Phi-3 only and runs others as plain RoPE"
        yield Finding("longrope_elsewhere", f"longrope{where}", meant, "do not serve it with llama.cpp", NOTE)
    if kind == "yarn":
        meant = "a ramp by pair index; whether the model was trained by_rotations (paper, Eq. 18) cannot be seen here"
        yield Finding("ramp_not_seen", f"yarn{where}", meant, "compare with the training configuration", NOTE)


def tokenizer_too_short(given: Given) -> Iterator[Finding]:
    """Tokenizers warn or cut at model_max_length, and vLLM bounds requests by it."""
    length, longest = given.tokenizer_length, given.max_length
    if longest is None:
        meant = "the longest sequence in tokens"
        yield Finding("max_length_missing", "no max_position_embeddings", meant, "write max_position_embeddings")
    elif length is not None and length < longest:
        got = f"model_max_length {length} in tokenizer_config.json, window {longest}"
        yield Finding("tokenizer_too_short", got, f"at least {longest}", f"set model_max_length to {longest}")


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


SPELLING: tuple[Callable[[Given], Iterator[Finding]], ...] = (theta_spelling, spelling)
CONTENT: tuple[Callable[[Given, Mapping[str, Any], str, str], Iterator[Finding]], ...] = (
    types,
    unknown_keys,
    factor,
    lengths,
    betas,
    magnitude,
    divisors,
    readings,
)
