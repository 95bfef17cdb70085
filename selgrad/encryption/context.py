"""One crypto context of OpenFHE, made for a profile and checked against it: it encodes values into slots and converts ciphertexts and keys to and from bytes.

Where residues lie in OpenFHE's bytes is not documented, so a self-test learns it; where that fails, everything goes through OpenFHE itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from selgrad.encryption import openfhe
from selgrad.encryption.forms import Form, Known
from selgrad.encryption.layout import Layout, Residues
from selgrad.encryption.packing import Floats, fill_slots, read_slots
from selgrad.encryption.profiles import Profile
from selgrad.errors import EncryptionError, first_line

Kind = Literal["public", "secret", "ciphertext", "share"]


@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys with one tag; a holder that must not decrypt has no secret key, and one that must not encrypt has no public key.

    Attributes:
      public, secret: OpenFHE's keys; None where the holder has none.
      tag: identifies the keys.
    """

    public: Any
    secret: Any = dataclasses.field(repr=False)
    tag: str

    @classmethod
    def of(cls, pair: Any) -> Keys:
        """Wraps a key pair that OpenFHE made."""
        return cls(pair.publicKey, pair.secretKey, pair.publicKey.GetKeyTag())


class Context:
    """Handles single ciphertexts and keys with OpenFHE under one profile.

    Args:
      profile: the parameters to request from OpenFHE.

    Attributes:
      native: OpenFHE's own context.
      layout: of this context's ciphertexts; None where it was not understood, or the modulus has several primes.

    Raises:
      EncryptionError: if OpenFHE does not load here, or gives other parameters than those requested.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._fhe = openfhe.load()
        openfhe.require_unforked()
        self.native = self._make()
        # OpenFHE fills its tables of roots on first use, without a lock, so two threads that use them first at the same time can crash the process.
        # One round in a single thread fills them.
        self.layout: Layout | None = None
        self._known: dict[Kind, Known] = {}
        self.layout = self._learn_layout()
        self._learn_forms()
        if profile.word_bytes < 8 and self.layout is None:
            raise EncryptionError(f"profile {profile.name!r} sends bare residues, and this OpenFHE writes them in no known place; take profile 'exact'")

    def _make(self) -> Any:
        fhe, profile, parameters = self._fhe, self.profile, self._fhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(getattr(fhe.SecurityLevel, profile.security))
        parameters.SetRingDim(profile.ring)
        parameters.SetBatchSize(profile.ring // 2)
        parameters.SetMultiplicativeDepth(profile.depth)
        parameters.SetFirstModSize(profile.prime_bits)
        parameters.SetScalingModSize(profile.scale_bits)
        # Hybrid key switching doubles the ring even where no key switch happens.
        technique, switch = ("FLEXIBLEAUTO", "HYBRID") if profile.depth else ("FIXEDMANUAL", "BV")
        parameters.SetScalingTechnique(getattr(fhe.ScalingTechnique, technique))
        parameters.SetKeySwitchTechnique(getattr(fhe.KeySwitchTechnique, switch))
        parameters.SetCKKSDataType(getattr(fhe.CKKSDataType, profile.packing.upper()))
        if profile.decryption == "noise_flooding":
            parameters.SetDecryptionNoiseMode(fhe.DecryptionNoiseMode.NOISE_FLOODING_DECRYPT)
            parameters.SetExecutionMode(fhe.ExecutionMode.EXEC_EVALUATION)
            parameters.SetNoiseEstimate(profile.noise_bits)
        try:
            context = fhe.GenCryptoContext(parameters)
        except RuntimeError as error:
            raise EncryptionError(f"OpenFHE refuses profile {profile.name!r}: {first_line(error)}") from None
        for feature in ("PKE", "LEVELEDSHE", *(["MULTIPARTY"] if profile.decryption == "threshold" else [])):
            context.Enable(getattr(fhe.PKESchemeFeature, feature))
        bits = int(context.GetModulusCKKS()).bit_length()
        if context.GetRingDimension() != profile.ring or bits > profile.prime_bits + 1:
            raise EncryptionError(
                f"OpenFHE gives ring {context.GetRingDimension()} and a prime of {bits} bits for profile {profile.name!r}, which asks for {profile.ring} and "
                f"{profile.prime_bits}; its security or its room for clients would not be what it says"
            )
        return context

    def _learn_layout(self) -> Layout | None:
        """Runs one round of all operations, which fills OpenFHE's tables, and learns where residues lie, if sums of residues equal OpenFHE's own sums."""
        keys = self.fresh_keys()
        fresh = self._samples(keys)
        loaded = [self.deserialise(part) for part in fresh]
        rewritten = [self.serialise(ciphertext) for ciphertext in loaded]
        self.native.EvalAddInPlace(loaded[0], loaded[1])
        self.points(self.native.Decrypt(loaded[0], keys.secret), 2)
        if self.profile.depth:
            return None
        try:
            layout = Layout.learn([fresh, rewritten], keys.tag, self.profile.ring, int(self.native.GetModulusCKKS()))
            total = layout.add([layout.residues(part, keys.tag) for part in fresh[:2]])
            if not np.array_equal(total, layout.residues(self.serialise(loaded[0]), keys.tag)):
                return None
            sum_points = self.points(self.native.Decrypt(self.deserialise(layout.serialise(total, keys.tag)), keys.secret), 2)
            return layout if not sum_points.any() else None
        except EncryptionError:
            return None

    def _learn_forms(self) -> None:
        """Learns the forms of foreign keys, ciphertexts and shares, both as OpenFHE first writes them and as it writes them after reading."""
        pairs = [self.fresh_keys() for _ in range(4)]
        public, secret = ([(self.serialise(getattr(keys, kind)), keys.tag) for keys in pairs] for kind in ("public", "secret"))
        read_public = lambda raw: self._fhe.DeserializePublicKeyString(raw, self._fhe.BINARY)
        read_secret = lambda raw: self._fhe.DeserializePrivateKeyString(raw, self._fhe.BINARY)
        publics = [public, [(self.serialise(read_public(raw)), tag) for raw, tag in public]]
        if self.profile.decryption == "threshold":
            joint = [Keys.of(self.native.MultipartyKeyGen(read_public(raw))) for raw, _ in public]
            publics.append([(self.serialise(keys.public), keys.tag) for keys in joint])
        self._learn("public", "public key", publics)
        self._learn("secret", "secret key", [secret, [(self.serialise(read_secret(raw)), tag) for raw, tag in secret]])
        if self.layout is None:
            fresh = self._samples(pairs[0])
            loaded = [self.deserialise(part) for part in fresh]
            written = [self.serialise(ciphertext) for ciphertext in loaded]
            self._learn("ciphertext", "ciphertext", [[(part, pairs[0].tag) for part in group] for group in (fresh, written)])
        if self.profile.decryption == "threshold":
            self._learn_shares(pairs[0])

    def _learn_shares(self, lead: Keys) -> None:
        reloaded = lambda keys: self.load_key(self.serialise(keys.secret), "secret")
        joint = Keys.of(self.native.MultipartyKeyGen(lead.public))
        groups = []
        for decrypt, keys in ((self.native.MultipartyDecryptLead, lead), (self.native.MultipartyDecryptMain, joint)):
            for secret in (keys.secret, reloaded(keys)):
                sums = [self.deserialise(part) for part in self._samples(joint)]
                groups.append([(self.serialise(decrypt([ciphertext], secret)[0]), joint.tag) for ciphertext in sums])
        self._learn("share", "share of a decryption", groups)

    def _learn(self, kind: Kind, label: str, groups: Sequence[Sequence[tuple[bytes, str]]]) -> None:
        # Where forms are not understood, OpenFHE reads foreign bytes unchecked.
        with contextlib.suppress(EncryptionError):
            forms = tuple(dict.fromkeys(Form.learn(group, 8 * self.profile.ring) for group in groups))
            self._known[kind] = Known(forms, 2 ** (self.profile.prime_bits + 1), label)

    def _require_known_form(self, kind: Kind, raw: bytes) -> None:
        """Refuses foreign bytes of an unknown form before OpenFHE reads them."""
        if kind in self._known:
            self._known[kind].require(raw)

    def _samples(self, keys: Keys) -> list[bytes]:
        return [self.serialise(self.encrypt(keys, self.encode(np.zeros(1), 0))) for _ in range(4)]

    # Keys

    def fresh_keys(self) -> Keys:
        """Makes a key pair."""
        openfhe.require_unforked()
        return Keys.of(self.native.KeyGen())

    def adopt(self, keys: Keys) -> Keys:
        """Learns the form of ciphertexts under a loaded key, since OpenFHE writes parameters again if they are not the very same object."""
        if self.profile.key == "public":
            if self.layout is not None:
                self.layout = self.layout.extended(self._samples(keys), keys.tag)
            elif "ciphertext" in self._known:
                known = self._known["ciphertext"]
                form = Form.learn([(part, keys.tag) for part in self._samples(keys)], 8 * self.profile.ring)
                self._known["ciphertext"] = dataclasses.replace(known, forms=tuple(dict.fromkeys((*known.forms, form))))
        return keys

    def load_key(self, raw: bytes, kind: Literal["public", "secret"]) -> Any:
        """Loads OpenFHE's key from the bytes that `serialise` made.

        Raises:
          EncryptionError: if the bytes are not a key of this kind and profile.
        """
        openfhe.require_unforked()
        self._require_known_form(kind, raw)
        load = self._fhe.DeserializePublicKeyString if kind == "public" else self._fhe.DeserializePrivateKeyString
        try:
            key = load(raw, self._fhe.BINARY)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EncryptionError(f"{len(raw)} bytes are not a {kind} key ({first_line(error)}); fetch it again") from None
        if key is None or key.GetCryptoContext() != self.native:
            raise EncryptionError(f"{len(raw)} bytes are not a {kind} key of profile {self.profile.name!r}; fetch it again")
        return key

    def key_that_encrypts(self, keys: Keys) -> Any:
        """The key that encrypts: the public key, or the secret key where the profile says so."""
        return keys.secret if self.profile.key == "secret" else keys.public

    # Values

    def encode(self, chunk: Floats, start: int) -> Any:
        """The plaintext of at most `values_per_ciphertext` values and the canary, quantised.

        Args:
          chunk: values; clipped to the bound.
          start: index of the first value, for error messages.

        Raises:
          EncryptionError: for NaN or infinity.
        """
        return self.pack(fill_slots(chunk, self.profile, start))

    def pack(self, slots: npt.NDArray[np.float64]) -> Any:
        """The plaintext of all slots, unchanged."""
        return self.native.MakeCKKSPackedPlaintext(slots.view(np.complex128) if self.profile.packing == "complex" else slots)

    def encrypt(self, keys: Keys, plain: Any) -> Any:
        """OpenFHE's ciphertext of a plaintext."""
        return self.native.Encrypt(self.key_that_encrypts(keys), plain)

    def points(self, plain: Any, num_clients: int) -> npt.NDArray[np.int64]:
        """Grid points of one decrypted ciphertext, without the canary.

        Raises:
          EncryptionError: if a value is off the grid, or the canary is not the sum over `num_clients`.
        """
        profile = self.profile
        plain.SetLength(profile.ring // 2)
        if profile.packing == "complex":
            slots = np.ascontiguousarray(plain.GetCKKSPackedValueArray()).view(np.float64)
        else:
            slots = np.array(plain.GetRealPackedValueArray())
        return read_slots(slots, profile, num_clients)

    # Bytes

    def serialise(self, item: Any) -> bytes:
        """A ciphertext or a key as OpenFHE writes it."""
        raw: bytes = self._fhe.Serialize(item, self._fhe.BINARY)
        return raw

    def deserialise(self, part: bytes) -> Any:
        """Loads OpenFHE's ciphertext from the bytes that `serialise` made; foreign bytes go through `load`.

        Raises:
          EncryptionError: if OpenFHE cannot read a ciphertext from them.
        """
        try:
            loaded = self._fhe.DeserializeCiphertextString(part, self._fhe.BINARY)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EncryptionError(f"a ciphertext of {len(part)} bytes is truncated or damaged ({first_line(error)})") from None
        if loaded is None:
            raise EncryptionError(f"{len(part)} bytes are not a ciphertext; ask the client to send them again")
        return loaded

    def to_wire(self, ciphertext: Any, tag: str) -> bytes:
        """The bytes of a ciphertext as they are sent."""
        part = self.serialise(ciphertext)
        return part if self.layout is None else self.from_residues(self.layout.residues(part, tag), tag)

    def load(self, part: bytes, tag: str) -> Any:
        """Loads OpenFHE's ciphertext from the bytes that were sent; OpenFHE never reads bytes that are not a ciphertext, which could crash it.

        Raises:
          EncryptionError: if the bytes are not a ciphertext of this context under a key of this tag.
        """
        if self.layout is None:
            self._require_known_form("ciphertext", part)
            return self.deserialise(part)
        residues = self.residues(part, tag)
        return self.deserialise(self.layout.serialise(residues, tag) if self.profile.word_bytes < 8 else part)

    def load_share(self, part: bytes) -> Any:
        """Loads OpenFHE's decryption share.

        Raises:
          EncryptionError: if the bytes are not a share of this context.
        """
        self._require_known_form("share", part)
        return self.deserialise(part)

    def residues(self, part: bytes, tag: str) -> Residues:
        """The residues of a ciphertext that was sent; only where there is a layout.

        Raises:
          EncryptionError: as for `load`.
        """
        assert self.layout is not None
        return self.layout.unpack(part, self.profile.word_bytes) if self.profile.word_bytes < 8 else self.layout.residues(part, tag)

    def from_residues(self, residues: Residues, tag: str) -> bytes:
        """The inverse of `residues`."""
        assert self.layout is not None
        return self.layout.pack(residues, self.profile.word_bytes) if self.profile.word_bytes < 8 else self.layout.serialise(residues, tag)
