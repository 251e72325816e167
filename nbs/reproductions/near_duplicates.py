"Small gray versions of images, and which of them are nearly alike: the icons suite was freed of such images."
import numpy as np


def gray_thumbnails(images, size=16):
    "Of (n, height, width, 3) bytes, whose sides `size` divides: (n, size²), 0 black … 1 white"
    gray = np.asarray(images, np.float32) @ np.array([.299, .587, .114], np.float32)/255
    n, height, width = gray.shape
    blocks = gray.reshape(n, size, height//size, size, width//size)
    return blocks.mean((2, 4)).reshape(n, size**2)


def near_duplicates(a, b, distance=.06, chunk=1024):
    "Whether each row of `a` (n, k) has a row of `b` (m, k) within a distance, root mean square"
    near = np.zeros(len(a), bool)
    squares = (b*b).sum(1)
    for i in range(0, len(a), chunk):
        x = a[i:i+chunk]
        for j in range(0, len(b), 16*chunk):
            some = slice(j, j+16*chunk)
            products = 2*x @ b[some].T
            d = (x*x).sum(1)[:, None] + squares[None, some] - products
            near[i:i+chunk] |= (d < a.shape[1]*distance**2).any(1)
    return near
