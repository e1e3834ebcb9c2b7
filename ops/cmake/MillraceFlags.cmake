# Language level, warnings, hardening and sanitizers, for our own targets only (see millrace_flags).
set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set_property(GLOBAL PROPERTY USE_FOLDERS ON)

option(MILLRACE_WERROR "Treat warnings as errors" OFF)
option(MILLRACE_FUZZ "Build fuzz targets with libFuzzer (clang only); otherwise they replay their corpus as tests" OFF)
option(MILLRACE_FAILPOINTS "Compile failpoints in (tests only; never in a release)" OFF)
set(MILLRACE_SANITIZE "" CACHE STRING "Sanitizers, as for -fsanitize= (address,undefined or thread)")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Paths below the source folder do not count, so that another clone of the same sources finds what this one compiled.
  set(ccache ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${ccache})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ccache})
endif()

add_library(millrace_flags INTERFACE)
target_include_directories(millrace_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(millrace_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wformat=2 -Wconversion -Wsign-conversion -Wshadow -Wimplicit-fallthrough
  -Wnon-virtual-dtor -Woverloaded-virtual -Werror=switch -Werror=return-type -Werror=format-security
  -fno-strict-aliasing -fno-delete-null-pointer-checks -ftrivial-auto-var-init=zero
  -ffile-prefix-map=${PROJECT_SOURCE_DIR}=.)
if(MILLRACE_FUZZ)
  target_compile_options(millrace_flags INTERFACE -fsanitize=fuzzer-no-link)  # coverage of what is fuzzed, not only of the target
endif()
if(MILLRACE_WERROR)
  target_compile_options(millrace_flags INTERFACE -Werror)
endif()
if(MILLRACE_FAILPOINTS)
  target_compile_definitions(millrace_flags INTERFACE MILLRACE_FAILPOINTS=1)
endif()

if(MILLRACE_SANITIZE)
  add_compile_options(-fsanitize=${MILLRACE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${MILLRACE_SANITIZE})
else()
  target_compile_definitions(millrace_flags INTERFACE _GLIBCXX_ASSERTIONS)
  target_compile_options(millrace_flags INTERFACE
    -fstack-clash-protection -fstack-protector-strong -fcf-protection=full
    $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=3>)
  target_link_options(millrace_flags INTERFACE
    -Wl,-z,noexecstack -Wl,-z,relro -Wl,-z,now -Wl,--as-needed)
endif()
