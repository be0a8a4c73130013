# What the training script reads, apart from model, data, optimizer and schedule.
train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=90000,
    amp=dict(enabled=False),  # mixed precision
    # Arguments of DistributedDataParallel. fp16_compression halves what is sent between GPUs; so does
    # bf16_compression=True, with the range of float32.
    ddp=dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
    ),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    device="cuda",
)
# Further keys, with what holds without them; on the command line they are written train.max_epochs=12.
#   seed=-1, deterministic=False, cudnn_benchmark=False
#   max_epochs=0, step_epochs=[]      length of training, and steps of lr_multiplier, in passes over the data
#   accumulation_steps=1              batches for one step of the optimizer
#   clip_grad=dict(enabled=True, params=dict(max_norm=0.1, norm_type=2))       limit the norm of all gradients together
#   ema_decay=0.0                     moving average of the weights, which is evaluated and saved
#   freeze=[]                         patterns of names of parameters that are not trained: ["backbone.bottom_up.*"]
#   compile=False, channels_last=None
#   shard_model=False                 split model and optimizer state over all processes (FSDP2)
#   on_nonfinite_loss="stop", max_skipped_in_a_row=10       or "skip" the step
#   checkpoint_format="pth"           or "safetensors"
#   checkpoint_layout="full"          or "sharded", "sharded_async": each process writes its part of a sharded model
#   checkpoints_to_keep=0             in place of checkpointer.max_to_keep; 0 keeps all
#   validation_loss_period=0          needs dataloader.validation
#   best_metric="", best_mode="max", early_stopping_patience=0      such as "bbox/AP"
#   amp_dtype=""                      or "bfloat16", "float16", with amp.enabled
#   pad_to=[], cuda_graphs=False      sizes of batches such as "800x1344"; with compile, on a GPU
#   prefetch=True                     on a GPU, fetch the next batch during a step
#   resize_on_device=False            the device that trains resizes the images
#   gradient_compression="", static_graph=False             between processes: "bf16" or "fp16"
#   try_evaluator=True                on two images, before training
#   writers=["terminal", "json", "tensorboard"]
