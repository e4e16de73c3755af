import numpy as np
import paddle
import pytest

from plsc.heads import reference
from plsc.heads.distillation import LESSONS

REFERENCES = {"cosine": reference.cosine_lesson, "relation": reference.relation_lesson}


def embeddings(samples, kind, seed=0):
    rng = np.random.default_rng(seed)
    of_teacher = 5 if kind == "cosine" else 7
    return rng.normal(size=(samples, 5)) * rng.uniform(0.1, 30, (samples, 1)), rng.normal(size=(samples, of_teacher))


def lesson_of(kind, student, teacher):
    samples = len(student)
    loss_b, gradient = LESSONS[kind](paddle.to_tensor(student), paddle.to_tensor(teacher), [samples])
    return float(loss_b.sum()) / samples, gradient.numpy() / samples


@pytest.mark.core
@pytest.mark.parametrize("kind", LESSONS)
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_loss_and_gradient_are_those_of_the_reference(kind, samples):
    student, teacher = embeddings(samples, kind)
    expected, by_embedding = REFERENCES[kind](student, teacher)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-6)):
        loss, gradient = lesson_of(kind, student.astype(dtype), teacher.astype(dtype))
        assert gradient.dtype == dtype and loss == pytest.approx(expected, rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(gradient, by_embedding, rtol=1e3 * tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", LESSONS)
def test_the_reference_has_the_gradient_of_finite_differences(kind):
    student, teacher = embeddings(4, kind)
    found, step = np.zeros_like(student), 1e-6
    for place in np.ndindex(*student.shape):
        moved = [student.copy(), student.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        found[place] = (REFERENCES[kind](moved[0], teacher)[0] - REFERENCES[kind](moved[1], teacher)[0]) / (2 * step)
    np.testing.assert_allclose(REFERENCES[kind](student, teacher)[1], found, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", LESSONS)
def test_a_student_that_agrees_has_no_loss_and_a_zero_row_no_gradient(kind):
    student, _ = embeddings(6, kind)
    loss, gradient = lesson_of(kind, student, 3.0 * student)
    assert loss == pytest.approx(0, abs=1e-12) and np.abs(gradient).max() < 1e-12
    student, teacher = embeddings(6, kind)
    student[2] = 0
    loss, gradient = lesson_of(kind, student, teacher)
    assert np.isfinite(loss) and np.isfinite(gradient).all() and not gradient[2].any() and gradient[3].any()


def test_relations_do_not_change_when_an_embedding_is_turned_or_scaled():
    student, teacher = embeddings(6, "relation")
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
    loss = lesson_of("relation", student, teacher)[0]
    assert lesson_of("relation", 2.0 * student @ turn, teacher)[0] == pytest.approx(loss)
