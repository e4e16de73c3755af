"""Linear layers, GELU, PReLU and layer normalisation by oneDNN, as functions of addresses of float32 tensors."""

from __future__ import annotations

from ctypes import c_float

from plsc.machine.onednn import Handle, Library, Primitive

# Values of dnnl_types.h, which are the same in all versions 3.
_FORWARD, _BACKWARD, _GELU_ERF, _USE_SCALE_AND_SHIFT = 64, 128, 0x31, 2 | 4
_SOURCE, _OUTPUT, _WEIGHT, _BIAS, _MEAN, _VARIANCE, _SCALE, _SHIFT = 1, 17, 33, 41, 49, 50, 51, 52
_SOURCE_GRADIENT, _OUTPUT_GRADIENT, _WEIGHT_GRADIENT, _SCALE_GRADIENT, _SHIFT_GRADIENT = 129, 145, 161, 255, 256


class Affine:
    """A product of matrices to whose rows a bias is added.

    Args:
        library: oneDNN.
        rows: Number of rows of the input and of the output.
        inputs: Elements of a row of the input.
        outputs: Elements of a row of the output.

    Raises:
        NotImplementedError: oneDNN has no kernels for it that are compiled for this processor.
    """

    def __init__(self, library: Library, rows: int, inputs: int, outputs: int) -> None:
        shapes = ((rows, inputs), (inputs, outputs), (1, outputs), (rows, outputs))
        layouts = [library.plain_layout(shape) for shape in shapes]
        self._layouts = dict(zip((_SOURCE, _WEIGHT, _BIAS, _OUTPUT), layouts))
        arguments = [*(layout.pointer for layout in layouts), library.attributes.pointer]
        descriptor = library.descriptor("dnnl_matmul_primitive_desc_create", *arguments)
        self._forward = _compiled(library, descriptor)

    def output(self, tensors: tuple[int, ...], output: int) -> None:
        """Writes the product and the bias to `output`.

        Args:
            tensors: Addresses of the source, of the weight and of the bias.
            output: Address of the output.
        """
        self._forward(_with_layouts(self._layouts, dict(zip(self._layouts, (*tensors, output)))))


class Gelu:
    """The function x P(X <= x) for a standard normal X (Hendrycks and Gimpel, arXiv:1606.08415), and its gradient.

    Args:
        library: oneDNN.
        size: Number of elements.

    Raises:
        NotImplementedError: oneDNN has no kernels for it that are compiled for this processor.
    """

    def __init__(self, library: Library, size: int) -> None:
        self._layout = library.plain_layout((size,))
        layout, end = self._layout.pointer, (c_float(0), c_float(0))
        forward = library.descriptor(
            "dnnl_eltwise_forward_primitive_desc_create",
            *(_FORWARD, _GELU_ERF, layout, layout, *end, library.attributes.pointer),
        )
        backward = library.descriptor(
            "dnnl_eltwise_backward_primitive_desc_create",
            *(_GELU_ERF, layout, layout, layout, *end, forward.pointer, library.attributes.pointer),
        )
        self._forward, self._backward = _compiled(library, forward), _compiled(library, backward)

    def output(self, source: int, output: int) -> None:
        """Writes the function of the source to `output`."""
        self._forward({_SOURCE: (self._layout, source), _OUTPUT: (self._layout, output)})

    def gradient(self, source: int, output_gradient: int, of_source: int) -> None:
        """Writes the gradient of the source to `of_source`."""
        tensors = {_SOURCE: source, _OUTPUT_GRADIENT: output_gradient, _SOURCE_GRADIENT: of_source}
        self._backward({number: (self._layout, address) for number, address in tensors.items()})


class Prelu:
    """PReLU with a slope for each channel (He et al., arXiv:1502.01852, equation 1), and its gradients.

    Args:
        library: oneDNN.
        batch: Number of images.
        channels: Number of channels.
        size: Elements of a channel of an image.

    Raises:
        NotImplementedError: oneDNN has no kernels for it that are compiled for this processor.
    """

    def __init__(self, library: Library, batch: int, channels: int, size: int) -> None:
        images, slopes = library.plain_layout((batch, channels, size)), library.plain_layout((1, channels, 1))
        self._layouts = {
            **dict.fromkeys((_SOURCE, _OUTPUT, _SOURCE_GRADIENT, _OUTPUT_GRADIENT), images),
            **dict.fromkeys((_WEIGHT, _WEIGHT_GRADIENT), slopes),
        }
        forward = library.descriptor(
            "dnnl_prelu_forward_primitive_desc_create",
            *(_FORWARD, images.pointer, slopes.pointer, images.pointer, library.attributes.pointer),
        )
        backward = library.descriptor(
            "dnnl_prelu_backward_primitive_desc_create",
            *(images.pointer, slopes.pointer, images.pointer, slopes.pointer, images.pointer),
            *(forward.pointer, library.attributes.pointer),
        )
        self._forward, self._backward = _compiled(library, forward), _compiled(library, backward)

    def output(self, tensors: tuple[int, ...], output: int) -> None:
        """Writes x where it is positive, and slope * x elsewhere, to `output`.

        Args:
            tensors: Addresses of x and of the slopes.
            output: Address of the output.
        """
        arguments = dict(zip((_SOURCE, _WEIGHT, _OUTPUT), (*tensors, output)))
        self._forward(_with_layouts(self._layouts, arguments))

    def gradients(self, tensors: tuple[int, ...], output_gradient: int, results: tuple[int, ...]) -> None:
        """Writes the gradients of x and of the slopes.

        Args:
            tensors: Addresses of x and of the slopes.
            output_gradient: Address of the gradient of the output.
            results: Addresses for the gradients of `tensors`.
        """
        arguments = dict(zip((_SOURCE, _WEIGHT), tensors))
        arguments.update(zip((_OUTPUT_GRADIENT, _SOURCE_GRADIENT, _WEIGHT_GRADIENT), (output_gradient, *results)))
        self._backward(_with_layouts(self._layouts, arguments))


class LayerNorm:
    """Layer normalisation of rows (Ba et al., arXiv:1607.06450, equation 4), and its gradients.

    Args:
        library: oneDNN.
        rows: Number of rows.
        width: Elements of a row.
        epsilon: What is added to the variance.

    Raises:
        NotImplementedError: oneDNN has no kernels for it that are compiled for this processor.
    """

    def __init__(self, library: Library, rows: int, width: int, epsilon: float) -> None:
        matrix, row, column = (library.plain_layout(shape) for shape in ((rows, width), (width,), (rows,)))
        self._layouts = {
            **dict.fromkeys((_SOURCE, _OUTPUT, _SOURCE_GRADIENT, _OUTPUT_GRADIENT), matrix),
            **dict.fromkeys((_SCALE, _SHIFT, _SCALE_GRADIENT, _SHIFT_GRADIENT), row),
            **dict.fromkeys((_MEAN, _VARIANCE), column),
        }
        end = (column.pointer, c_float(epsilon), _USE_SCALE_AND_SHIFT)
        forward = library.descriptor(
            "dnnl_layer_normalization_forward_primitive_desc_create",
            *(_FORWARD, matrix.pointer, matrix.pointer, *end, library.attributes.pointer),
        )
        backward = library.descriptor(
            "dnnl_layer_normalization_backward_primitive_desc_create",
            *(_BACKWARD, *[matrix.pointer] * 3, *end, forward.pointer, library.attributes.pointer),
        )
        self._forward, self._backward = _compiled(library, forward), _compiled(library, backward)

    def output(self, tensors: tuple[int, ...], output: int, statistics: tuple[int, ...]) -> None:
        """Writes the normalised rows to `output`, and mean and variance of each row to `statistics`.

        Args:
            tensors: Addresses of the source, of the weight and of the bias.
            output: Address of the output.
            statistics: Addresses of the means and of the variances.
        """
        arguments = dict(zip((_SOURCE, _SCALE, _SHIFT), tensors))
        arguments.update(zip((_MEAN, _VARIANCE, _OUTPUT), (*statistics, output)))
        self._forward(_with_layouts(self._layouts, arguments))

    def gradients(
        self, tensors: tuple[int, ...], statistics: tuple[int, ...], output_gradient: int, results: tuple[int, ...]
    ) -> None:
        """Writes the gradients of the source, of the weight and of the bias.

        Args:
            tensors: Addresses of the source, of the weight and of the bias.
            statistics: What `output` wrote.
            output_gradient: Address of the gradient of the output.
            results: Addresses for the gradients of `tensors`.
        """
        arguments = dict(zip((_SOURCE, _SCALE, _SHIFT), tensors))
        arguments.update(zip((_SOURCE_GRADIENT, _SCALE_GRADIENT, _SHIFT_GRADIENT), results))
        arguments.update(zip((_MEAN, _VARIANCE, _OUTPUT_GRADIENT), (*statistics, output_gradient)))
        self._backward(_with_layouts(self._layouts, arguments))


def _with_layouts(layouts: dict[int, Handle], tensors: dict[int, int]) -> dict[int, tuple[Handle, int]]:
    return {number: (layouts[number], address) for number, address in tensors.items()}


def _compiled(library: Library, descriptor: Handle) -> Primitive:
    if not library.implementation(descriptor).startswith(("jit", "brg", "gemm:jit")):
        raise NotImplementedError("oneDNN has no kernels of this processor for it")
    return Primitive(library, descriptor)
