// The memory of the simulated device: unreadable but while device work runs. A touch outside of it, or of what is
// released or beyond the end of an allocation, ends the program with a message that says which.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>

namespace regolith {

// Not thread-safe, but for the table of addresses that all share.
class GuardedMemory {
 public:
  GuardedMemory();
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // Pages of their own, of which the allocation takes the end (but for rounding to 256 bytes); an unreadable page
  // follows. Throws DeviceError.
  void* allocate(size_t bytes);
  void release(void* memory) noexcept;
  bool contains(const void* memory, size_t bytes) const;  // all in one allocation

  // Device work may touch the memory while one of these lives.
  class Unlock {
   public:
    explicit Unlock(GuardedMemory& memory);
    ~Unlock();
    Unlock(const Unlock&) = delete;
    Unlock& operator=(const Unlock&) = delete;

   private:
    GuardedMemory& memory_;
  };
  // What runs now, for the message; null: host code.
  static void name_work(const char* name);

 private:
  struct Block {
    void* base = nullptr;
    size_t mapped = 0, guard = 0, usable = 0;  // bytes; the guard page comes after
    void* slot = nullptr;                      // in the table of addresses
  };
  static void protect(const Block& block, int how);
  void protect_all(int how);
  static void drop(const Block& block);
  void* free_slot();

  std::map<uintptr_t, Block> live_;  // by the address that the user has
  std::deque<Block> released_;       // stay unreadable until the table is full
  int unlocked_ = 0;
};

}  // namespace regolith
