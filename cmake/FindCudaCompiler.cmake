# Sets CMAKE_CUDA_COMPILER and CUDA_TOOLKIT (its version) where a usable nvcc is found: named by
# CUDACXX or CMAKE_CUDA_COMPILER, on the PATH, or of the PyPI packages beside torch (CUDA 13 on). With SALUN_FAST_CUDA=on a missing one is an error.
set(OLDEST_CUDA 12.0) # the first to compile C++20

include(CheckLanguage)
cmake_path(GET TORCH_DIR PARENT_PATH SITE_PACKAGES)
file(GLOB PYPI_NVCC ${SITE_PACKAGES}/nvidia/cu*/bin/nvcc)
find_program(NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NVCC OR CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  check_language(CUDA)
elseif(PYPI_NVCC)
  list(GET PYPI_NVCC 0 CMAKE_CUDA_COMPILER)
  # Its libraries lie in lib, where nvcc looks in lib64; there is none for device linking.
  cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH PYPI_CUDA)
  string(APPEND CMAKE_CUDA_FLAGS " -L${PYPI_CUDA}/../lib --cudadevrt=none")
endif()

# Says in `result` what stops nvcc and its host compiler from compiling our sources, if anything: a
# compiler too new for the other one shows only there.
function(try_kernels result)
  set(host "")
  if(DEFINED ENV{CUDAHOSTCXX})
    set(host -ccbin $ENV{CUDAHOSTCXX})
  endif()
  set(folder ${CMAKE_BINARY_DIR}/cuda_trial)
  file(MAKE_DIRECTORY ${folder})
  set(cuda ${CMAKE_SOURCE_DIR}/csrc/cuda)
  execute_process(
    COMMAND ${CMAKE_CUDA_COMPILER} ${host} -std=c++20 -arch=sm_80 -Xcompiler=-fPIC
            -DTORCH_TARGET_VERSION=${TORCH_TARGET}ULL -I${CMAKE_SOURCE_DIR}/csrc
            -isystem=${TORCH_DIR}/include -c ${cuda}/register.cu ${cuda}/accumulate.cu
    WORKING_DIRECTORY ${folder} RESULT_VARIABLE failed OUTPUT_QUIET ERROR_VARIABLE said)
  if(failed)
    string(SUBSTRING "${said}" 0 1000 said)
    set(${result} "${CMAKE_CUDA_COMPILER} does not compile the kernels: ${said}" PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

set(CUDA_MISSING "")
if(NOT CMAKE_CUDA_COMPILER AND NVCC)
  set(CUDA_MISSING "${NVCC} does not compile with the C++ compiler here: set CUDAHOSTCXX to an \
older one, or use a newer CUDA")
elseif(NOT CMAKE_CUDA_COMPILER)
  set(CUDA_MISSING "no nvcc was found: put one on the PATH, set CUDACXX, or pip install \
the nvidia-cuda-nvcc, -crt, -cccl, -runtime and nvidia-nvvm of torch's CUDA version")
else()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE NVCC_SAYS)
  string(REGEX MATCH "release ([0-9.]+)" _ "${NVCC_SAYS}")
  set(CUDA_TOOLKIT "${CMAKE_MATCH_1}")
  if(CUDA_TOOLKIT VERSION_LESS OLDEST_CUDA)
    set(CUDA_MISSING "${CMAKE_CUDA_COMPILER} is CUDA ${CUDA_TOOLKIT}, ${OLDEST_CUDA} is needed")
  elseif(SALUN_FAST_CUDA STREQUAL "auto")
    try_kernels(CUDA_MISSING) # or else the build fails, and takes the CPU ops with it
  endif()
  if(CUDA_MISSING)
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
