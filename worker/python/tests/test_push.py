"""Pushing, against an orchestrator that says what a test wants."""

from __future__ import annotations

import json
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import layercast
from layercast import PushFailed, RawTensor, Refused, Rows, Timeout
from layercast.bucket_bytes import ROW_RANGES_KEY, BucketBytes

from .fake_orchestrator import FakeOrchestrator, lost, refusal, tensors_of
from .optional_torch import torch

CONFIG = {"model_type": "llama"}
A = RawTensor("U8", [3, 2], bytes(range(6)))
B = RawTensor("F32", [], b"\1\2\3\4")


class Push(unittest.TestCase):
    def setUp(self) -> None:
        self.fake = FakeOrchestrator()
        self.addCleanup(self.fake.close)

    def push(self, **more: Any) -> layercast.PushSession:
        return layercast.push(self.fake.url, CONFIG, **{"timeout_s": 10, **more})

    def sent(self) -> list[str]:
        asked = [one for one in self.fake.asked if one.startswith("PUT")]
        return [one.removeprefix("PUT /v1/reloads/r1/buckets/") for one in asked]

    def test_asks_for_what_it_was_given(self) -> None:
        declared = {"a": A, "b": ("BF16", [2])}
        with self.push(tensors=declared, options={"partial": True}, token="t", fleet="f", recipe={"scheme": "none"}):
            pass
        (body,) = self.fake.submitted
        self.assertTrue(body.pop("submission_id"))
        listed = [{"name": "a", "dtype": "U8", "shape": [3, 2]}, {"name": "b", "dtype": "BF16", "shape": [2]}]
        source = {"kind": "push", "config": CONFIG, "partial": True, "tensors": listed}
        self.assertEqual(body, {"fleet": "f", "recipe": {"scheme": "none"}, "source": source})
        self.assertEqual(self.fake.authorization, "Bearer t")

    def test_takes_a_config_with_numbers_that_are_not_finite(self) -> None:
        config = {"hidden_size": 8, "a": float("nan"), "b": [float("inf"), {"c": float("-inf")}], "d": 0.5}
        with layercast.push(self.fake.url, config, timeout_s=10):
            pass
        expected = {"hidden_size": 8, "a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 0.5}
        self.assertEqual(self.fake.submitted[0]["source"]["config"], expected)

    def test_sends_every_byte_and_is_finished_at_the_end_of_the_block(self) -> None:
        with self.push() as session:
            self.assertEqual([session.send({"a": A, "b": B}), session.send({"c": A})], [0, 1])
            self.assertNotIn("POST /v1/reloads/r1/finish", self.fake.asked)
        self.assertEqual(session.reload["state"], "committed")
        expected = {"a": ("U8", [3, 2], bytes(range(6))), "b": ("F32", [], b"\1\2\3\4")}
        self.assertEqual(tensors_of(self.fake.buckets[0]), (expected, {}))

    def test_is_cancelled_by_an_exception_in_the_block(self) -> None:
        with self.assertRaisesRegex(ZeroDivisionError, "mine"), self.push():
            raise ZeroDivisionError("mine")
        self.assertEqual(self.fake.state, "cancelled")
        self.assertNotIn("POST /v1/reloads/r1/finish", self.fake.asked)

    def test_that_does_not_end_committed_raises_the_reason(self) -> None:
        self.fake.ends_as = "failed"
        self.fake.error = {"code": "non_finite_weights", "message": "a holds NaN"}
        with self.assertRaisesRegex(PushFailed, "r1 failed: non_finite_weights: a holds NaN") as raised, self.push():
            pass
        self.assertEqual(raised.exception.reload["state"], "failed")

    def test_is_cancelled_when_it_cannot_be_finished(self) -> None:
        self.fake.lacks = "b has not been sent"
        with self.assertRaisesRegex(Refused, "tensor_missing: b has not been sent"), self.push() as session:
            session.send({"a": A})
        self.assertEqual(self.fake.state, "cancelled")

    def test_says_by_code_what_was_refused(self) -> None:
        self.fake.instead = [refusal(422, "shape_mismatch")]
        with self.assertRaisesRegex(Refused, "shape_mismatch it is") as raised, self.push() as session:
            session.send({"a": A})
        self.assertEqual((raised.exception.code, raised.exception.details), ("shape_mismatch", {"n": 1}))
        self.assertEqual(self.fake.state, "cancelled")

    def test_waits_for_room_as_long_as_it_is_told(self) -> None:
        self.fake.instead = [refusal(429, "backpressure", Retry_After="1")]
        started = time.monotonic()
        with self.push() as session:
            session.send({"a": A})
        self.assertGreaterEqual(time.monotonic() - started, 1)
        self.assertEqual(self.sent(), ["0", "0"])

    def test_waits_for_room_no_longer_than_its_timeout(self) -> None:
        self.fake.instead = [refusal(429, "backpressure", Retry_After="1")]
        with self.assertRaisesRegex(Timeout, "sending bucket 0 .* backpressure it is"):
            with self.push(timeout_s=0.5) as session:
                session.send({"a": A})

    def test_does_not_send_again_what_came_though_its_answer_was_lost(self) -> None:
        self.fake.instead = [lost]
        with self.push() as session:
            session.send({"a": A})
        self.assertEqual(self.sent(), ["0"])

    def test_has_no_more_buckets_pending_than_it_may(self) -> None:
        with self.push(options={"max_pending_buckets": 2}) as session:
            for index in range(5):
                session.send({f"a{index}": A})
        self.assertEqual(self.fake.most_pending, 2)

    def test_sends_again_what_is_wanted_again(self) -> None:
        with self.push(options={"retain": "trainer"}, again=lambda number: {f"a{number}": A}) as session:
            session.send({"a0": A})
            session.send({"a1": A})
            self.fake.wanted = [1]
            self.fake.ends_as = "finalizing"  # until it has come
            self.fake.instead = [self.commit]
        self.assertEqual(self.sent(), ["0", "1", "1"])

    def commit(self, _: Any) -> bool:
        self.fake.state = "committed"
        return False

    def test_without_the_tensors_cannot_send_again(self) -> None:
        with self.assertRaisesRegex(PushFailed, "bucket 0 is wanted again"), self.push() as session:
            session.send({"a": A})
            self.fake.wanted = [0]
            self.fake.ends_as = "finalizing"

    def test_names_files_and_says_when_they_are_free(self) -> None:
        with tempfile.TemporaryDirectory() as directory, self.push() as session:
            path = Path(directory, "a b.safetensors")
            path.write_bytes(b"".join(bytes(chunk) for chunk in BucketBytes({"a": A}).chunks()))
            number = session.post(path, immutable=True)
            session.wait_consumed(number)
        self.assertEqual(self.fake.states, {100: "consumed"})
        self.assertEqual(tensors_of(self.fake.buckets[100])[0]["a"][2], bytes(range(6)))

    def test_needs_a_url(self) -> None:
        with self.assertRaisesRegex(ValueError, "is no URL"):
            layercast.push("127.0.0.1:8600", CONFIG)

    def test_says_what_answers_when_it_is_not_layercast(self) -> None:
        self.fake.close()
        with self.assertRaisesRegex(Timeout, "opening a push did not work"), self.push(timeout_s=0.1):
            pass


class Bytes(unittest.TestCase):
    def test_say_where_rows_belong(self) -> None:
        chunks = BucketBytes({"a": Rows(A, 4, 9), "b": B}).chunks()
        found, metadata = tensors_of(b"".join(bytes(chunk) for chunk in chunks))
        self.assertEqual(found["a"], ("U8", [3, 2], bytes(range(6))))
        ranges = {"a": {"offset": [4, 0], "global_shape": [9, 2]}}
        self.assertEqual(json.loads(metadata[ROW_RANGES_KEY]), ranges)

    def test_have_the_size_that_they_say_and_begin_aligned(self) -> None:
        for name in ("a", "ab", "abc", "abcdefgh"):
            bucket = BucketBytes({name: A})
            chunks = [bytes(chunk) for chunk in bucket.chunks()]
            self.assertEqual(sum(map(len, chunks)), bucket.size)
            self.assertEqual(len(chunks[0]) % 8, 0)

    def test_can_be_read_twice(self) -> None:
        bucket = BucketBytes({"a": A})
        self.assertEqual(*([bytes(chunk) for chunk in bucket.chunks()] for _ in range(2)))

    def test_are_refused_where_they_do_not_fit(self) -> None:
        with self.assertRaisesRegex(ValueError, "9 rows, not those from 7 to 10"):
            BucketBytes({"a": Rows(A, 7, 9)})
        with self.assertRaisesRegex(ValueError, "scalar"):
            BucketBytes({"b": Rows(B, 0, 1)})
        with self.assertRaisesRegex(ValueError, "has 6 bytes, not 5"):
            list(BucketBytes({"a": RawTensor("U8", [3, 2], bytes(5))}).chunks())
        with self.assertRaisesRegex(ValueError, "'int7' is not known"):
            BucketBytes({"a": RawTensor("int7", [1], b"\0")})
        with self.assertRaisesRegex(ValueError, "one tensor or more"):
            BucketBytes({})

    @unittest.skipIf(torch is None, "needs torch")
    def test_are_those_of_torch_tensors_whatever_their_strides(self) -> None:
        assert torch is not None
        value = torch.arange(6, dtype=torch.float32).to(torch.bfloat16).reshape(2, 3)
        empty = torch.empty(0, 4)
        sent = {"t": value.t(), "s": torch.tensor(2, dtype=torch.int64), "e": empty, "r": Rows(value[1:], 1, 2)}
        found, _ = tensors_of(b"".join(bytes(chunk) for chunk in BucketBytes(sent).chunks()))
        bits = value.view(torch.int16)

        def words(tensor: Any) -> bytes:
            return b"".join(int(v).to_bytes(2, "little") for v in tensor.flatten().tolist())

        self.assertEqual(found["t"], ("BF16", [3, 2], words(bits.t())))
        self.assertEqual(found["s"], ("I64", [], (2).to_bytes(8, "little")))
        self.assertEqual(found["e"], ("F32", [0, 4], b""))
        self.assertEqual(found["r"], ("BF16", [1, 3], words(bits[1])))
