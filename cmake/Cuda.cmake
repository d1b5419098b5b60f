# The CUDA part: the kernel sources under nvcc, the CUDA device, the cuDNN provider.
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows C++20 of g++ and not of nvcc
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
if(NOT REGOLITH_CUDA_ARCHITECTURES)
  execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE no_gpu OUTPUT_QUIET ERROR_QUIET)
  if(no_gpu)
    set(REGOLITH_CUDA_ARCHITECTURES 90)  # with its PTX, which later devices take
  else()
    set(REGOLITH_CUDA_ARCHITECTURES native)
  endif()
endif()
set_source_files_properties(${KERNEL_SOURCES} PROPERTIES LANGUAGE CUDA)
add_library(kernels_gpu OBJECT ${KERNEL_SOURCES})
set_target_properties(kernels_gpu PROPERTIES CUDA_ARCHITECTURES "${REGOLITH_CUDA_ARCHITECTURES}")
target_include_directories(kernels_gpu PRIVATE "${CMAKE_SOURCE_DIR}")
target_compile_options(kernels_gpu PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo -Xcompiler=-Wall,-Wextra
  --Werror=all-warnings --expt-relaxed-constexpr
  --no-compress>)  # tools/kernel_report.py reads the PTX

# cuDNN stands in the toolkit, or in the wheel nvidia-cudnn-cu13 (CUDNN_ROOT, or the one that python3 finds), whose
# libraries carry only the versioned name; so do the toolkit's own in its wheels.
if(NOT CUDNN_ROOT AND NOT DEFINED ENV{CUDNN_ROOT})
  execute_process(COMMAND python3 -c "import nvidia.cudnn as c; print(list(c.__path__)[0], end='')"
    OUTPUT_VARIABLE cudnn_wheel ERROR_QUIET)
endif()
set(cudnn_hints ${CUDNN_ROOT} $ENV{CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS} ${CUDAToolkit_LIBRARY_DIR} ${cudnn_wheel})
find_path(CUDNN_INCLUDE cudnn.h HINTS ${cudnn_hints} PATH_SUFFIXES include REQUIRED)
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${cudnn_hints} PATH_SUFFIXES lib lib64 REQUIRED)
# NCCL's header alone: the library is loaded by ranks that train together. In the system, NCCL_ROOT, or .deps.
find_path(NCCL_INCLUDE nccl.h HINTS ${NCCL_ROOT} $ENV{NCCL_ROOT} ${CUDAToolkit_INCLUDE_DIRS} "${REGOLITH_DEPS}/nccl"
  PATH_SUFFIXES include)
find_path(CUDNN_FRONTEND_INCLUDE cudnn_frontend.h HINTS "${REGOLITH_DEPS}/include" REQUIRED)
find_library(CUDART_LIBRARY NAMES cudart libcudart.so.${CUDAToolkit_VERSION_MAJOR} HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
find_library(NVRTC_LIBRARY NAMES nvrtc libnvrtc.so.${CUDAToolkit_VERSION_MAJOR} HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
message(STATUS "CUDA ${CUDAToolkit_VERSION} for sm ${REGOLITH_CUDA_ARCHITECTURES}, ${CUDNN_LIBRARY}")

# The driver's library is not linked: the programs start on a machine without it, and say that it has no CUDA device.
add_library(regolith_cuda INTERFACE)
target_include_directories(regolith_cuda SYSTEM INTERFACE "${CUDNN_INCLUDE}" "${CUDNN_FRONTEND_INCLUDE}"
  ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(regolith_cuda INTERFACE REGOLITH_CUDA)
if(NCCL_INCLUDE)
  target_include_directories(regolith_cuda SYSTEM INTERFACE "${NCCL_INCLUDE}")
  target_compile_definitions(regolith_cuda INTERFACE REGOLITH_NCCL)
endif()
target_link_libraries(regolith_cuda INTERFACE "${CUDART_LIBRARY}" "${NVRTC_LIBRARY}" "${CUDNN_LIBRARY}" ${CMAKE_DL_LIBS})

set_source_files_properties(engine/conv/cudnn_graph.cpp PROPERTIES
  COMPILE_DEFINITIONS CUDNN_FRONTEND_SKIP_JSON_LIB  # half of its templates, to print graphs
  SKIP_PRECOMPILE_HEADERS ON)

# For the tests that build cuDNN plans with no driver: the toolkit's stub, which they load where there is no libcuda.
find_file(REGOLITH_CUDA_STUB libcuda.so HINTS ${CUDAToolkit_LIBRARY_DIR}/stubs)
