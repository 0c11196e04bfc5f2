# All images with `docker buildx bake`, for builders that have it; images/build.py needs only `docker build`.
#
#     python images/build.py --bake > .bake.json
#     docker buildx bake --file images/docker-bake.hcl --file .bake.json [STAGE …]
#
# .bake.json holds the labels that are derived from the checkout: code identity and interface of each stage.
# FLAVOR=cuda, BASE=IMAGE, WHEELS=FOLDER, CA=FILE and PIP_CONFIG=FILE in the environment set the variables.

variable "FLAVOR" {
  default = "cpu"
  validation {
    condition     = FLAVOR == "cpu" || FLAVOR == "cuda"
    error_message = "FLAVOR is cpu or cuda."
  }
}
variable "VERSION" { default = "0.1.0" }
variable "BASE" { default = "debian:bookworm-slim" }
variable "REGISTRY" { default = "microstages" }
variable "REVISION" { default = "" }
variable "SOURCE" { default = "" }
# a folder of wheels, a file of certificates, a pip.conf; each may be empty
variable "WHEELS" { default = "" }
variable "CA" { default = "" }
variable "PIP_CONFIG" { default = "" }

group "default" {
  targets = ["prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer"]
}

target "common" {
  context = "."
  secret = concat(
    CA == "" ? [] : ["id=ca,src=${CA}"],
    PIP_CONFIG == "" ? [] : ["id=pip,src=${PIP_CONFIG}"],
  )
}

target "builder" {
  inherits   = ["common"]
  dockerfile = "images/base/Dockerfile"
  target     = "builder"
  contexts   = WHEELS == "" ? {} : { at-hand = WHEELS }
  args       = { BASE = BASE, WHEELS = WHEELS == "" ? "scratch" : "at-hand" }
}

target "base" {
  inherits   = ["common"]
  dockerfile = "images/base/Dockerfile"
  target     = "base"
  contexts   = WHEELS == "" ? {} : { at-hand = WHEELS }
  args       = { BASE = BASE, WHEELS = WHEELS == "" ? "scratch" : "at-hand" }
}

target "layer" {
  name       = layer.name
  inherits   = ["common"]
  dockerfile = "images/layer.Dockerfile"
  matrix = {
    layer = [
      { name = "core", parent = "base" },
      { name = "torch", parent = "core" },
      { name = "onnx", parent = "torch" },
    ]
  }
  contexts = merge(
    { below = "target:${layer.parent}", tools = "target:builder" },
    WHEELS == "" ? {} : { at-hand = WHEELS },
  )
  args = {
    PARENT  = "below"
    BUILDER = "tools"
    WHEELS  = WHEELS == "" ? "scratch" : "at-hand"
    LAYER   = layer.name
    FLAVOR  = FLAVOR
  }
}

target "stage" {
  name       = stage.name
  inherits   = ["common"]
  dockerfile = "images/${stage.name}.Dockerfile"
  matrix = {
    stage = [
      { name = "prepare-data", parent = "core" },
      { name = "merge", parent = "core" },
      { name = "train-lora", parent = "torch" },
      { name = "train-qlora", parent = "torch" },
      { name = "build-onnx", parent = "onnx" },
      { name = "infer", parent = "onnx" },
    ]
  }
  contexts = merge(
    { below = "target:${stage.parent}", tools = "target:builder" },
    WHEELS == "" ? {} : { at-hand = WHEELS },
  )
  args = {
    PARENT   = "below"
    BUILDER  = "tools"
    WHEELS   = WHEELS == "" ? "scratch" : "at-hand"
    FLAVOR   = FLAVOR
    VERSION  = VERSION
    REVISION = REVISION
    SOURCE   = SOURCE
  }
  tags = ["${REGISTRY}/${stage.name}:${VERSION}-${FLAVOR}", "${REGISTRY}/${stage.name}:latest"]
}
