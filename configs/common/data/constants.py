# Pixel statistics of ImageNet for values from 0 to 255.
constants = dict(
    imagenet_rgb256_mean=[123.675, 116.28, 103.53],
    imagenet_rgb256_std=[58.395, 57.12, 57.375],
    imagenet_bgr256_mean=[103.53, 116.28, 123.675],
    # Caffe-style weights in BGR have the division by the standard deviation folded into their first convolution.
    imagenet_bgr256_std=[1.0, 1.0, 1.0],
)
