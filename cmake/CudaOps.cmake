# The CUDA ops: a plain library like the CPU ops, with the CUDA runtime inside. Machine code for
# sm_80 and sm_90, PTX for what comes later; CMAKE_CUDA_ARCHITECTURES (also from the environment, as
# CUDAARCHS) chooses others.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " CUDA_ARCHITECTURES)
message(STATUS "CUDA ops: ${CMAKE_CUDA_COMPILER} ${CUDA_TOOLKIT} for ${CUDA_ARCHITECTURES}")

# IEEE division and square root, subnormals kept, nothing fused but what the rules fuse.
set(EXACT_CUDA --fmad=false --prec-div=true --prec-sqrt=true --ftz=false)

# One symbol of libtorch_cuda.so is needed: a stand-in with its soname is enough to link against.
file(WRITE ${CMAKE_BINARY_DIR}/torch_cuda_stub.cpp
     "extern \"C\" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n")
add_library(torch_cuda_stub SHARED ${CMAKE_BINARY_DIR}/torch_cuda_stub.cpp)
set_target_properties(torch_cuda_stub PROPERTIES
  OUTPUT_NAME torch_cuda CXX_VISIBILITY_PRESET default
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)

add_library(salun_fast_cuda MODULE
  csrc/cuda/register.cu csrc/cuda/upload.cu csrc/cuda/accumulate.cu csrc/cuda/threshold.cu
  csrc/cuda/select.cu csrc/cuda/masked_sgd.cu csrc/cuda/masked_adam.cu
  csrc/cuda/soft_threshold.cu csrc/cuda/per_sample.cu)
target_include_directories(salun_fast_cuda PRIVATE csrc)
target_include_directories(salun_fast_cuda SYSTEM PRIVATE ${TORCH_DIR}/include)
target_compile_definitions(salun_fast_cuda PRIVATE TORCH_TARGET_VERSION=${TORCH_TARGET}ULL)
# A developer's -Werror (CXXFLAGS) holds for nvcc, its host compiler and ptxas too.
set(CUDA_STRICT "")
if(CMAKE_CXX_FLAGS MATCHES "-Werror")
  set(CUDA_STRICT --Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(salun_fast_cuda PRIVATE
  ${EXACT_CUDA} ${CUDA_STRICT} -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-ffp-contract=off
  -Xcompiler=-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=)
target_link_libraries(salun_fast_cuda PRIVATE ${TORCH_DIR}/lib/libtorch_cpu.so torch_cuda_stub)
target_link_options(salun_fast_cuda PRIVATE -Wl,--no-as-needed)
set_target_properties(salun_fast_cuda PROPERTIES SKIP_BUILD_RPATH ON)
install(TARGETS salun_fast_cuda LIBRARY DESTINATION salun_fast)
