# tasks.exs, which prints one line of the machine's own figures when it gets SIGUSR2: `books={...}`, in bytes.
#
# Allocators are asked first: asking the processes makes a list of them, and takes memory itself.

defmodule Books do
  @allocators ~w(temp sl std ll eheap ets fix literal binary driver)a

  def print do
    allocators = Enum.flat_map(@allocators, &allocator/1)
    mapped = mapped()
    line = Enum.map_join(allocators ++ mapped ++ processes(), ",", fn {name, value} -> ~s("#{name}":#{value}) end)
    IO.puts("books={#{line}}")
  end

  # {:instance, number, [mbcs: ..., mbcs_pool: ..., sbcs: ...]}, each with its blocks by allocator and its carriers.
  defp allocator(name) do
    kinds =
      for {:instance, _, kinds} <- :erlang.system_info({:allocator_sizes, :"#{name}_alloc"}), {_, kind} <- kinds, do: kind

    blocks = for kind <- kinds, {:blocks, by_allocator} <- kind, {_, sizes} <- by_allocator, do: current(sizes, :size)
    [{"#{name}_carriers", kinds |> Enum.map(&current(&1, :carriers_size)) |> Enum.sum()}, {"#{name}_blocks", Enum.sum(blocks)}]
  end

  # {name, current} or {name, current, highest since..., highest}
  defp current(figures, name) do
    case List.keyfind(figures, name, 0) do
      nil -> 0
      figure -> elem(figure, 1)
    end
  end

  # What it has from mmap, segments that it keeps for the next carrier included.
  defp mapped do
    mapper = :erlang.system_info({:allocator, :erts_mmap})
    [{"mapped", get_in(mapper, [:default_mmap, :os, :sizes, :used])}]
  end

  defp processes do
    none = %{count: 0, stack: 0, objects: 0, heap: 0}
    sums = Enum.reduce(:erlang.processes() -- [self()], none, &add/2)
    [{"processes", sums.count} | for({name, words} <- Map.delete(sums, :count), do: {"process_#{name}", 8 * words})]
  end

  # Neither of the two wakes the process.
  defp add(process, sums) do
    case :erlang.process_info(process, [:stack_size, :garbage_collection_info]) do
      :undefined ->
        sums

      [stack_size: stack, garbage_collection_info: heap] ->
        %{
          count: sums.count + 1,
          stack: sums.stack + stack,
          objects: sums.objects + heap[:heap_size] + heap[:old_heap_size],
          heap: sums.heap + heap[:heap_block_size] + heap[:old_heap_block_size]
        }
    end
  end
end

{:ok, _} = System.trap_signal(:sigusr2, fn -> Books.print() end)
Code.require_file("tasks.exs", __DIR__)
