# What the training script reads, apart from model, data, optimizer and schedule.
train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=90000,
    amp=dict(enabled=False),  # mixed precision
    ddp=dict(  # arguments of DistributedDataParallel; fp16_compression halves what is sent between GPUs
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    device="cuda",
)
