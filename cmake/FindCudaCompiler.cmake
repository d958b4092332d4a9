# Sets CMAKE_CUDA_COMPILER and CUDA_TOOLKIT (its version) where a usable nvcc is found: named by
# CUDACXX or CMAKE_CUDA_COMPILER, on the PATH, or of the PyPI packages nvidia-cuda-nvcc and
# nvidia-cuda-runtime beside torch. With SALUN_FAST_CUDA=on a missing one is an error.
set(OLDEST_CUDA 12.0) # the first to compile C++20

include(CheckLanguage)
file(GLOB PYPI_NVCC ${TORCH_DIR}/../nvidia/cu*/bin/nvcc ${TORCH_DIR}/../nvidia/cuda_nvcc/bin/nvcc)
find_program(NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NVCC OR CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  check_language(CUDA)
elseif(PYPI_NVCC)
  list(GET PYPI_NVCC 0 CMAKE_CUDA_COMPILER)
endif()

set(CUDA_MISSING "")
if(NOT CMAKE_CUDA_COMPILER)
  set(CUDA_MISSING "no nvcc was found: put one on the PATH, set CUDACXX, or pip install \
nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl")
else()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE NVCC_SAYS)
  string(REGEX MATCH "release ([0-9.]+)" _ "${NVCC_SAYS}")
  set(CUDA_TOOLKIT "${CMAKE_MATCH_1}")
  if(CUDA_TOOLKIT VERSION_LESS OLDEST_CUDA)
    set(CUDA_MISSING "${CMAKE_CUDA_COMPILER} is CUDA ${CUDA_TOOLKIT}, ${OLDEST_CUDA} is needed")
    set(CUDA_TOOLKIT "")
    unset(CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
  endif()
endif()

if(CUDA_MISSING AND SALUN_FAST_CUDA STREQUAL "on")
  message(FATAL_ERROR "SALUN_FAST_CUDA=on, but ${CUDA_MISSING}")
elseif(CUDA_MISSING)
  message(STATUS "CUDA ops: left out (${CUDA_MISSING})")
endif()
